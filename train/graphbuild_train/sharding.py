"""A frozen base shared out among processes (torch's FSDP2). The LoRA stays whole in each, as it is in data-parallel
training: checkpoints and files are the same."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from graphbuild_train.model_setup import repeated


def shard(model: nn.Module, device: torch.device) -> None:
    """Share out the frozen weights of an adapted model, in place, block by block; it may be in main memory.

    Each process then has its part of every weight on `device`, and the whole LoRA.
    """
    trained = {parameter for parameter in model.parameters() if parameter.requires_grad}
    for parameter in trained:
        parameter.data = parameter.data.to(device)
    mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
    for module in (*repeated(model), model):
        fully_shard(module, mesh=mesh, ignored_params=trained)


def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replace gradients by their mean over all processes."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    parts = torch.split(flat, [gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))

"""Speed and memory of a model: activation checkpointing, compiled blocks, fewer copies, correct attention kernels."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import wraps
from typing import Any

import torch
from diffusers.models.normalization import RMSNorm
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.utils.checkpoint import checkpoint

_NORMS = (nn.RMSNorm, nn.LayerNorm, nn.GroupNorm, RMSNorm)

GEOMETRIES = 64
"""Shapes that a block may be compiled for; torch gives up after 8, and path lists have more."""


def spare(model: nn.Module, every: int) -> None:
    """Recompute every k-th block of a diffusers model in the backward pass (activation checkpointing); 0 is none.

    Results do not change; one pass in three is added for `every=1`, and activations shrink by that share.
    """
    if not every:
        if getattr(model, "is_gradient_checkpointing", False):
            model.disable_gradient_checkpointing()  # type: ignore[operator]
        return
    order: dict[int, int] = {}

    def call(block: nn.Module, *args: Any) -> Any:
        if order.setdefault(id(block), len(order)) % every:
            return block(*args)
        return checkpoint(block, *args, use_reentrant=False)

    model.enable_gradient_checkpointing(call)  # type: ignore[operator]


def compiled(model: nn.Module, note: Callable[[str], None]) -> bool:
    """Compile the repeated blocks of a diffusers model, once per kind of block and shape, on their first call.

    Returns:
        False, with a note, on a machine without the compiler that torch needs.
    """
    if not any(shutil.which(name) for name in ("g++", "clang++", "c++")):
        note("compile: skipped, there is no C++ compiler (g++ or clang++) on this machine")
        return False
    torch._dynamo.config.recompile_limit = GEOMETRIES
    for block in repeated(model):
        block.compile(dynamic=False)
    return True


def repeated(model: nn.Module) -> list[nn.Module]:
    """The repeated blocks of a diffusers model, by the names of their classes or of what these were made from."""
    names = set(getattr(model, "_repeated_blocks", ()))
    return [module for module in model.modules() if names & {cls.__name__ for cls in type(module).__mro__}]


def sound_attention() -> None:
    """Keep attention off cuDNN, which torch prefers on Hopper since 2.11: its backward pass gives NaN or illegal
    memory accesses (pytorch/pytorch#196678). Flash attention takes its place."""
    torch.backends.cuda.enable_cudnn_sdp(False)


def place(pipe: Any, device: torch.device | str, *, offloaded: bool, left: str = "") -> Any:
    """Move the networks of a pipeline to a device, and return it.

    Args:
        offloaded: text encoders stay in main memory, from where each layer visits the device when it is asked
            (diffusers' group offloading); results are those of an encoder on the device.
        left: a network that goes to, or stays in, main memory.
    """
    from diffusers import hooks

    library: Any = hooks
    for name, module in pipe.components.items():
        if isinstance(module, nn.Module):
            if offloaded and name.startswith("text_encoder"):
                library.apply_group_offloading(module, onload_device=torch.device(device), offload_type="leaf_level")
            else:
                module.to("cpu" if name == left else device)
    return pipe


@contextmanager
def forward_within(model: nn.Module, context: Callable[[], AbstractContextManager[Any]]) -> Iterator[None]:
    """Let calls of a model, and nothing around them, run inside a context: pipelines call other networks as well."""
    forward, own = model.forward, "forward" in vars(model)

    @wraps(forward)
    def within(*arguments: Any, **options: Any) -> Any:
        with context():
            return forward(*arguments, **options)

    model.forward = within
    try:
        yield
    finally:
        if own:
            model.forward = forward
        else:
            del model.forward


def autocast_only(model: nn.Module) -> None:
    """Leave casts between a bfloat16 model and its float32 LoRA to autocast: peft would keep a float32 copy of every
    input, 2 GiB per 1,000 tokens of FLUX.1. Norms stay out of it: autocast keeps float32 copies of what goes through
    layer and group norms, and since torch 2.12 RMS norms, 9 GiB for the largest grids of FLUX.1. They compute in
    bfloat16, with sums in float32, as in diffusers' pipelines."""
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            vars(module)["cast_input_dtype_enabled"] = False
        elif isinstance(module, _NORMS):
            module.forward = _uncast(module.forward)  # type: ignore[method-assign]


def _uncast(forward: Callable[..., Any]) -> Callable[..., Any]:
    """The same call in bfloat16 and outside autocast."""

    @wraps(forward)
    def plain(states: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        with torch.autocast(states.device.type, enabled=False):
            return forward(states.bfloat16(), *arguments, **options)

    return plain

"""Random weights for `hed`, `pidinet`, `mlsd`: these networks have one size, so the files are small otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def tiny_hed(folder: Path) -> dict[str, Any]:
    """HED at 64 pixels. Its 15 million weights are overlapping views of short rows of random numbers: 1 MB, not 60."""
    import torch

    from graphbuild.models.controlnet_aux import network_class

    generator = torch.Generator().manual_seed(1)
    network = network_class("hed", "ControlNetHED_Apache2")()
    tensors = {name: torch.zeros_like(tensor) for name, tensor in network.state_dict().items()}
    for name, tensor in tensors.items():
        if tensor.ndim == 4 and name != "norm":
            strides = (37, 9, 3, 1)
            length = 1 + sum((side - 1) * stride for side, stride in zip(tensor.shape, strides, strict=True))
            row = torch.randn(length, generator=generator) * (2 / tensor[0].numel()) ** 0.5
            tensors[name] = row.as_strided(tensor.shape, strides)
    tensors["norm"] += 127.5
    for number in range(1, 6):  # side outputs of a few units, so that the sigmoid of their mean has all tones
        tensors[f"block{number}.projection.weight"] /= 30
    return {"model": _save(tensors, folder / "ControlNetHED.pth"), "resolution": 64}


def tiny_pidinet(folder: Path) -> dict[str, Any]:
    """PiDiNet at 64 pixels, saved like the published one: as trained in parallel, beside its epoch."""
    import torch

    from graphbuild.models.controlnet_aux import network_class

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network = network_class("pidi.model", "pidinet")()
    tensors = {f"module.{name}": tensor for name, tensor in network.state_dict().items()}
    tensors["module.classifier.weight"] *= 20
    saved = {"epoch": 1, "state_dict": tensors}
    return {"model": _save(saved, folder / "table5_pidinet.pth"), "resolution": 64}


def tiny_teed(folder: Path) -> dict[str, Any]:
    """TEED, which is small as it is, at 64 pixels."""
    import torch

    from graphbuild.models.controlnet_aux import network_class

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network = network_class("teed.ted", "TED")()
    return {"model": _save(network.state_dict(), folder / "5_model.pth"), "resolution": 64}


def tiny_lineart(folder: Path) -> dict[str, Any]:
    """The network of line drawings at 64 pixels, the weights of its inner blocks repeated so that files are small."""
    import torch

    from graphbuild.models.controlnet_aux import network_class

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network = network_class("lineart", "Generator")(3, 1, 3)
        tensors = network.state_dict()
        for name, tensor in tensors.items():
            if tensor.numel() > 100_000:
                tensors[name] = (torch.randn(3, 3) * (1 / tensor[0].numel()) ** 0.5).expand(tensor.shape)
    tensors["model4.1.weight"] *= 3
    return {"model": _save(tensors, folder / "sk_model.pth"), "resolution": 64}


def tiny_mlsd(folder: Path) -> dict[str, Any]:
    """The small M-LSD at 64 pixels, with displacements long enough to draw."""
    import torch

    from graphbuild.models.controlnet_aux import network_class

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network = network_class("mlsd.models.mbv2_mlsd_tiny", "MobileV2_MLSD_Tiny")()
    tensors = network.state_dict()
    for name in [name for name in tensors if name.endswith("bias")]:
        tensors[name].zero_()  # which would drown what little the picture changes
    tensors["block16.conv3.weight"][7] *= 4e4  # the certainty of segment centres
    tensors["block16.conv3.weight"][8:12] *= 2e5  # from the centre to both ends
    file = folder / "mlsd_tiny_512_fp32.pth"
    return {"model": _save(tensors, file), "variant": "tiny", "certainty": 0.5, "resolution": 64}


def _save(tensors: dict[str, Any], file: Path) -> str:
    """The folder of a checkpoint with this one file."""
    import torch

    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(tensors, file)
    return str(file.parent)

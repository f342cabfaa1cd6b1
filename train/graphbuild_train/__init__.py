"""Trains a LoRA on in-context grid tasks drawn from a graph."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graphbuild_train.config import LoraConfig, OptimiserConfig, TrainConfig, config_from
    from graphbuild_train.sampling import LoraSampler
    from graphbuild_train.trainer import train

__all__ = ["LoraConfig", "LoraSampler", "OptimiserConfig", "TrainConfig", "config_from", "train"]
_MODULES = {"train": "trainer", "LoraSampler": "sampling"}


def __getattr__(name: str) -> Any:
    """Public names are imported on first use: `train` loads torch."""
    if name not in __all__:
        raise AttributeError(f"module 'graphbuild_train' has no attribute {name!r}")
    return getattr(import_module(f"graphbuild_train.{_MODULES.get(name, 'config')}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

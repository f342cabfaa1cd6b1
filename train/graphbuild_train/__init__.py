"""Trains a LoRA on in-context grid tasks drawn from a graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graphbuild_train.config import LoraConfig, OptimiserConfig, TrainConfig, config_from

if TYPE_CHECKING:
    from graphbuild_train.trainer import train

__all__ = ["LoraConfig", "OptimiserConfig", "TrainConfig", "config_from", "train"]


def __getattr__(name: str) -> Any:
    """`train` loads torch, so it is imported on first use."""
    if name != "train":
        raise AttributeError(f"module 'graphbuild_train' has no attribute {name!r}")
    from graphbuild_train.trainer import train

    return train


def __dir__() -> list[str]:
    return [*globals(), "train"]

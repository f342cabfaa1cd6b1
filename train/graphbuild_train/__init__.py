"""Trains a LoRA on in-context grid tasks drawn from a graph."""

from __future__ import annotations

from graphbuild_train.config import LoraConfig, OptimiserConfig, TrainConfig, config_from

__all__ = ["LoraConfig", "OptimiserConfig", "TrainConfig", "config_from"]

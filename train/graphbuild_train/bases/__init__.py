"""The model families that a LoRA can be trained for, one file each."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graphbuild_train.bases.base import Base
    from graphbuild_train.objective import Objective

BASES = {"flux_fill": "FluxFill", "flux_dev": "FluxDev", "sdxl": "Sdxl", "flux2_klein": "Flux2Klein"}
"""Module here -> its class."""


def load_base(name: str, model: str, objective: Objective, **options: Any) -> Base:
    """Load a checkpoint as base `name`; only that base's module is imported.

    Args:
        model: a diffusers folder, or a hub id.
        options: of `Base.load`: device, dtype, revision, guidance, hole_fill.

    Raises:
        ValueError: no such base or checkpoint, or it cannot be trained for that objective.
    """
    if name not in BASES:
        raise ValueError(f"base: {name!r}; allowed: {', '.join(BASES)}")
    cls: type[Base] = getattr(import_module(f"{__name__}.{name}"), BASES[name])
    if objective.name not in cls.objectives:
        raise ValueError(f"objective: {objective.name!r}; allowed for base {name}: {', '.join(cls.objectives)}")
    try:
        return cls.load(model, objective, **options)
    except OSError as error:  # whatever the Hub or the disk says, it is the name that was wrong, or the download
        raise ValueError(f"model: {model!r}: {' '.join(str(error).split())}") from error

"""The model families that a LoRA can be trained for, one file each."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphbuild.config.lookup import find_class

if TYPE_CHECKING:
    from graphbuild_train.bases.base import Base
    from graphbuild_train.objective import Objective

BASES = {
    "flux_fill": "graphbuild_train.bases.flux_fill:FluxFill",
    "flex2": "graphbuild_train.bases.flex2:Flex2",
    "flux_dev": "graphbuild_train.bases.flux_dev:FluxDev",
    "sdxl": "graphbuild_train.bases.sdxl:Sdxl",
    "qwen_edit": "graphbuild_train.bases.qwen_edit:QwenEdit",
    "flux2_klein": "graphbuild_train.bases.flux2_klein:Flux2Klein",
}
GROUP = "graphbuild.bases"
"""Entry points of other packages with bases."""
DECLARED = ("checkpoint", "pipeline", "objectives", "attention")


def base_class(name: str) -> type[Base]:
    """A base by its short name, as `module:Class`, or by an entry point; no other base is imported.

    Raises:
        ValueError: there is none, or it lacks a class variable that a run needs.
    """
    from graphbuild_train.bases.base import Base

    found: type[Base] = find_class("base", name, BASES, GROUP, Base)
    if absent := [attribute for attribute in DECLARED if not hasattr(found, attribute)]:
        raise ValueError(f"base {name!r}: {found.__name__} does not define {', '.join(absent)}")
    return found


def load_base(name: str, model: str | None, objective: Objective, **options: Any) -> Base:
    """Load a checkpoint as base `name`.

    Args:
        model: a diffusers folder, or a hub id; None is the base's own.
        options: of `Base.load`: device, dtype, revision, guidance, hole_fill.

    Raises:
        ValueError: no such base or checkpoint, or it cannot be trained for that objective.
    """
    cls, model = _fitting(name, model, objective)
    with _reading(model):
        return cls.load(model, objective, **options)


def plan_base(name: str, model: str | None, objective: Objective, **options: Any) -> Base:
    """The same on the meta device, of which only configs are read; options of `Base.planned`."""
    cls, model = _fitting(name, model, objective)
    with _reading(model):
        return cls.planned(model, objective, **options)


def _fitting(name: str, model: str | None, objective: Objective) -> tuple[type[Base], str]:
    cls = base_class(name)
    if objective.family not in cls.objectives:
        raise ValueError(f"objective: {objective.name!r}; allowed for base {name}: {', '.join(cls.objectives)}")
    return cls, model or cls.checkpoint


@contextmanager
def _reading(model: str) -> Iterator[None]:
    """A wrong name, a failed download or a damaged file is a ValueError that names the model."""
    from safetensors import SafetensorError

    try:
        with warnings.catch_warnings():  # diffusers hands the hub's library an argument that it no longer reads
            warnings.filterwarnings("ignore", message="The `local_dir_use_symlinks` argument")
            yield
    except (OSError, RecursionError, SafetensorError) as error:
        why = " ".join(str(error).split())[:200]
        if not Path(model).exists():
            get = f"get it with: graphbuild models fetch {model if '/' in model else 'ORG/NAME'}"
            why = f"neither a folder here nor to be had from the Hub ({why}); {get}"
        raise ValueError(f"model: {model!r}: {why}") from error

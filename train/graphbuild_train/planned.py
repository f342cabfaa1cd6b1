"""The networks of a checkpoint on the meta device: their sizes, from its configs alone."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import torch
from torch import nn

_LIBRARIES = ("diffusers", "transformers")


def planned_parts(model: str, revision: str | None, dtypes: Mapping[str, torch.dtype]) -> dict[str, nn.Module]:
    """Name in the pipeline -> network on the meta device; tokenizers and schedulers are left out.

    Args:
        model: a diffusers folder or hub repository, of which only configs are read.
        dtypes: by name, `default` for the others.

    Raises:
        OSError: there is no such checkpoint.
    """
    from diffusers import DiffusionPipeline

    index: Mapping[str, Any] = DiffusionPipeline.load_config(model, revision=revision)
    entries = {name: entry for name, entry in index.items() if isinstance(entry, list | tuple) and len(entry) == 2}
    classes = {
        name: getattr(import_module(library), kind, None)
        for name, (library, kind) in entries.items()
        if library in _LIBRARIES
    }
    return {
        name: nn.Module.to(_on_meta(cls, model, name, revision), dtypes.get(name, dtypes["default"]))
        for name, cls in classes.items()
        if isinstance(cls, type) and issubclass(cls, nn.Module)
    }


def _on_meta(cls: Any, model: str, name: str, revision: str | None) -> nn.Module:
    where: dict[str, Any] = {"subfolder": name, "revision": revision}
    with torch.device("meta"):
        if hasattr(cls, "config_class") and cls.config_class is not None:  # of transformers
            made: nn.Module = cls(cls.config_class.from_pretrained(model, **where))
        else:
            made = cls.from_config(cls.load_config(model, **where))
    return made

"""LoRA files in diffusers' format, with the recipe in the header."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from pickle import PickleError
from typing import Any

import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY, LORA_WEIGHT_NAME_SAFE
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

import graphbuild
from graphbuild_train.config import TrainConfig
from graphbuild_train.objective import objective_of

RECIPE_KEY = "graphbuild"
"""Entry of a file's header with the recipe as JSON; readers of LoRA files pass over it."""

_DAMAGE = (ValueError, TypeError, AttributeError, RuntimeError, EOFError)
ENTRY = re.compile(r"(?P<layer>.+)\.lora_(?P<side>[AB])\.(?P<what>weight|bias)")


@dataclass(frozen=True, kw_only=True)
class Lora:
    """What a LoRA file holds. Layer W of the base becomes W + scale (B A), and its bias b becomes b + scale c."""

    part: str
    """The pipeline's module that it belongs to: transformer or unet."""
    state: Mapping[str, Tensor]
    """`<layer>.lora_A.weight` A, rank x in; `<layer>.lora_B.weight` B, out x rank; `<layer>.lora_B.bias` c, out."""
    adapter: Mapping[str, Any]
    """Ranks, alphas and layers under the names of peft's `LoraConfig`; empty means scale 1."""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """Where it comes from, as JSON values."""

    def __post_init__(self) -> None:
        """Raises ValueError for what no format can hold: layers without both sides, or values that are not finite."""
        halves = {name.rpartition(".lora_")[0] for name in self.state}
        for layer in sorted(halves):
            a, b = (self.state.get(f"{layer}.lora_{side}.weight") for side in "AB")
            if a is None or b is None or a.shape[0] != b.shape[1]:
                shapes = [None if side is None else tuple(side.shape) for side in (a, b)]
                raise ValueError(f"layer {layer}: lora_A and lora_B are {shapes[0]} and {shapes[1]}, not a pair")
        bad = {name.rpartition(".lora_")[0]: None for name, tensor in self.state.items() if not tensor.isfinite().all()}
        if bad:
            some = ", ".join(list(bad)[:3]) + (", ..." if len(bad) > 3 else "")
            raise ValueError(
                f"NaN or infinite values in {len(bad)} of {len(halves)} layers ({some}); "
                "train again from an earlier checkpoint with a smaller learning rate"
            )
        for layer in self.layers:
            self.scale(layer)  # an adapter of somebody else's may not say all that it needs

    def cast(self, dtype: torch.dtype) -> Lora:
        """The same in another dtype.

        Raises:
            ValueError: values that the dtype cannot hold.
        """
        return replace(self, state={name: tensor.to(dtype) for name, tensor in self.state.items()})

    @property
    def layers(self) -> list[str]:
        """Names of the adapted layers, as diffusers calls them."""
        return [name.removesuffix(".lora_A.weight") for name in self.state if name.endswith(".lora_A.weight")]

    def scale(self, layer: str) -> float:
        """alpha / rank of a layer, or alpha / sqrt(rank) if the adapter is rank-stabilised (arXiv 2312.03732)."""
        if not self.adapter:
            return 1.0
        rank = self.state[f"{layer}.lora_A.weight"].shape[0]
        alphas: Mapping[str, float] = self.adapter.get("alpha_pattern", {})
        alpha: float = alphas.get(get_pattern_key(list(alphas), layer), self.adapter["lora_alpha"])
        return alpha / (math.sqrt(rank) if self.adapter.get("use_rslora") else rank)


def recipe_of(
    config: TrainConfig, *, model: str, snapshot: str, hole_fill: str, steps: int, revision: str | None = None
) -> dict[str, Any]:
    """The recipe in a file's header: the whole config with its shift resolved, and facts about the run.

    Args:
        model: hub id or folder of the base.
        snapshot: digest of the graph's state that was trained on.
        hole_fill: the colour of holes in training; sampling has to use the same.
        steps: optimiser steps done.
        revision: of the recipe's source, if it is under version control.
    """
    facts = {
        "version": graphbuild.__version__,
        "base_model": model,
        "shift": objective_of(config.objective, config.shift).shift,
        "hole_fill": hole_fill,
        "snapshot": snapshot,
        "steps_done": steps,
    }
    return asdict(config) | facts | ({"source_revision": revision} if revision else {})


def save_diffusers(lora: Lora, folder: Path) -> Path:
    """Write `pytorch_lora_weights.safetensors`, which `load_lora_weights` of the base's pipelines reads unchanged.

    The file is that of the pipeline's `save_lora_weights`, with the recipe added to its header.
    """
    state = {f"{lora.part}.{name}": tensor for name, tensor in lora.state.items()}
    return write(folder / LORA_WEIGHT_NAME_SAFE, state, {}, header_of(lora.part, lora.adapter, lora.recipe))


def header_of(part: str, adapter: Mapping[str, Any], recipe: Mapping[str, Any]) -> dict[str, str]:
    """The header of a file in diffusers' form; see `Lora`."""
    named = json.dumps({f"{part}.{name}": value for name, value in adapter.items()}, sort_keys=True)
    said = {RECIPE_KEY: json.dumps(recipe, sort_keys=True)} if recipe else {}
    return {**({LORA_ADAPTER_METADATA_KEY: named} if adapter else {}), **said}


def read_diffusers(path: Path) -> Lora:
    """Read a LoRA of one module in diffusers' form: the file, or the folder that `save_diffusers` wrote it into.

    Raises:
        ValueError: not a whole safetensors file, other entries, or those of two modules; the message names the file.
        FileNotFoundError: there is no such file.
    """
    file = path / LORA_WEIGHT_NAME_SAFE if path.is_dir() else path
    with reading(file):
        with safe_open(file, framework="pt") as opened:
            header = opened.metadata() or {}
            named = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  not a mapping
        parts = {name.partition(".")[0] for name in named}
        odd = [name for name in named if not ENTRY.fullmatch(name)]
        if odd or len(parts) != 1 or not parts <= {"transformer", "unet"}:
            raise ValueError(f"{(odd or sorted(parts))[:3]}; allowed: lora_A and lora_B of a transformer or a unet")
        (part,) = parts
        cut = len(part) + 1
        adapter = _mapping(header, LORA_ADAPTER_METADATA_KEY)
        return Lora(
            part=part,
            state={name[cut:]: tensor for name, tensor in named.items()},
            adapter={name[cut:]: value for name, value in adapter.items() if name.startswith(f"{part}.")},
            recipe=_mapping(header, RECIPE_KEY),
        )


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """Whatever a file of somebody else's breaks becomes a ValueError that names the file."""
    try:
        yield
    except KeyError as error:
        raise ValueError(f"{file}: entry {error} is missing") from error
    except (*_DAMAGE, SafetensorError, PickleError, re.error) as error:
        raise ValueError(f"{file}: {' '.join(str(error).split())}") from error


def _mapping(header: Mapping[str, str], key: str) -> dict[str, Any]:
    """The JSON object under a key of a file's header; empty without one."""
    found = json.loads(header.get(key, "{}"))
    if not isinstance(found, dict):
        raise ValueError(f"{key} in its header is not a JSON object")
    return found


def write(file: Path, state: Mapping[str, Tensor], recipe: Mapping[str, Any], header: Mapping[str, str]) -> Path:
    """Write a safetensors file with the recipe in its header; it takes its name when it is whole."""
    file.parent.mkdir(parents=True, exist_ok=True)
    said = {RECIPE_KEY: json.dumps(recipe, sort_keys=True)} if recipe else {}
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # the umask's; safetensors makes files that only their owner can read
        named = {name: tensor.contiguous() for name, tensor in state.items()}
        save_file(named, temporary, {"format": "pt", **header, **said})
        temporary.chmod(mode)
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
    return file

"""Whether a run may go on: its checkpoint, its recipe and its processes agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from graphbuild.errors import GraphError
from graphbuild.hashing import digest_of

FREE = {
    "steps", "micro_batch", "checkpointing", "compile", "shard", "workers", "cache_gb", "cache_disk_gb",
    "text_cache_gb", "cache_folder", "watch",
}  # fmt: skip
"""Fields that may change when a run is resumed: they do not affect a step, but for `_bound`."""

_BEFORE = {
    "mix": "step", "quantise": "none", "text": "device", "draws": "shared", "optimiser.name": "adamw",
    "lora.rslora": False, "lora.init": "zero", "lora.dora": False, "logit_mean": 0.0, "logit_std": 1.0, "min_snr": 0.0,
    "sampler.repeat": "path", "sampler.item_weight": None,
}  # fmt: skip
"""Fields that the first runs did not have, and what these did."""


def check_config(out: Path, saved: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Refuse a recipe that makes other steps than those of a checkpoint.

    Raises:
        GraphError: it names the fields that differ.
    """
    old, new = {**_BEFORE, **_flat(saved)}, _flat(config)
    free = FREE - _bound(config)
    names = [name for name in {**old, **new} if name.partition(".")[0] not in free and old.get(name) != new.get(name)]
    if names:
        different = ", ".join(f"{name} {old.get(name)!r} instead of {new.get(name)!r}" for name in names)
        raise GraphError(f"{out} was trained with {different}; continue with that, or choose another --out")


def check_steps(out: Path, done: int, steps: int) -> None:
    """Refuse a run that has more steps than it is to have.

    Raises:
        GraphError: it has.
    """
    if done > steps:
        raise GraphError(
            f"{out}: {done} steps are done, more than steps: {steps}; ask for more or choose another --out"
        )


def place(step: int, snapshot: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Where a process is about to begin; equal in all processes of a run."""
    bound = {name: value for name, value in config.items() if name != "watch"}
    return {"step": step, "snapshot": snapshot, "recipe": digest_of(bound)}


def check_processes(out: Path, places: Sequence[Mapping[str, Any]]) -> None:
    """Refuse processes that would train different steps together.

    Args:
        places: of all processes, by rank.

    Raises:
        GraphError: it names two of them, and what differs.
    """
    for rank, other in enumerate(places):
        different = [name for name, value in places[0].items() if other[name] != value]
        if different:
            said = "; ".join(f"{name} {places[0][name]} and {other[name]}" for name in different)
            raise GraphError(
                f"{out}: processes 0 and {rank} would begin differently ({said}); allowed: one recipe and one graph at "
                "one snapshot, and a folder that all processes see"
            )


def _bound(config: Mapping[str, Any]) -> set[str]:
    """Fields of `FREE` that do affect the steps of this run."""
    decays = {"steps"} if config["optimiser"]["schedule"] != "constant" else set()
    return decays | ({"micro_batch"} if config["mix"] == "pass" else set())


def _flat(document: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Nested values by dotted names."""
    found: dict[str, Any] = {}
    for name, value in document.items():
        found |= _flat(value, f"{before}{name}.") if isinstance(value, dict) else {f"{before}{name}": value}
    return found

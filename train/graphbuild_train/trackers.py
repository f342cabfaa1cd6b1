"""Loggers of a run by name: accelerate's trackers for TensorBoard, Weights & Biases and Trackio."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker

PROJECT = "graphbuild"
"""Where a service that sorts runs by project has them."""


def check(names: Sequence[str]) -> None:
    """Refuse a logger that is not installed.

    Raises:
        ValueError: the message says how to install it.
    """
    for name in names:
        if find_spec(name) is None:
            raise ValueError(f"watch.loggers: {name!r} is not installed: pip install {name}")


def started(names: Sequence[str], out: Path, *, after: int) -> list[GeneralTracker]:
    """The trackers of a run in the folder `out`, each with a run of that folder's name.

    Args:
        after: the first step that is to come, 0 for a new run; TensorBoard drops what a killed process wrote of it and
            later ones, Trackio goes on with the last run of that name.
    """
    options: dict[str, dict[str, Any]] = {
        "tensorboard": {"run_name": "", "logging_dir": str(out), "purge_step": after},
        "wandb": {"run_name": PROJECT, "name": out.resolve().name, "dir": str(out)},
        "trackio": {"run_name": PROJECT, "name": out.resolve().name, "resume": "allow" if after else "never"},
    }
    trackers = [LOGGER_TYPE_TO_CLASS[name](**options[name]) for name in names]
    for tracker in trackers:
        tracker.start()
    return trackers

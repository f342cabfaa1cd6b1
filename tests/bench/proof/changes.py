"""The tasks of the proof: changes of small pictures that only example rows can tell, as kinds of a graph.

Cells are pictures of 8 x 8 colours, enlarged eight times.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from graphbuild.annotators.base import Annotator, Derived, Request
from graphbuild.images import degradations
from graphbuild.kinds.registry import Kind

SIDE, SCALE = 8, 8

Colours = NDArray[np.uint8]


def _turned(turns: int, mirrored: bool, order: tuple[int, ...]) -> Callable[[Colours], Colours]:
    def made(picture: Colours) -> Colours:
        turned = np.rot90(picture[:, ::-1] if mirrored else picture, turns)
        return np.ascontiguousarray(turned[:, :, list(order)])

    return made


def _tinted(hue: int) -> Callable[[Colours], Colours]:
    """Towards one of twelve hues."""
    angle = 2 * np.pi * (hue / 12 + np.array([0, 1, 2]) / 3)
    tint = 127.5 * (1 + np.cos(angle))

    def made(picture: Colours) -> Colours:
        return np.rint(0.5 * picture + 0.5 * tint).astype(np.uint8)

    return made


_DEGRADED = ("gray", "contrast_weaken", "brighten", "darken")

TASKS: Mapping[str, Callable[[Colours], Colours]] = {
    **{f"turn{turns}{'m' if mirrored else ''}_{''.join(map(str, order))}": _turned(turns, mirrored, order)
       for order in permutations(range(3)) for mirrored in (False, True) for turns in range(4)},
    **{f"tint{hue}": _tinted(hue) for hue in range(12)},
    **{name: partial(degradations.apply, name, seed=0) for name in _DEGRADED},
}  # fmt: skip
"""48 orders of the colour channels, turns and mirror images, 12 tints, and 4 degradations, each of one strength."""

HELD_OUT = (*[name for name in TASKS if name.startswith("turn1")], "tint7", "tint8", "tint9")
"""A quarter of the former, which is a turn that no trained task has, and a range of the latter."""


def opposite(name: str) -> str:
    """The task that turns the other way round and exchanges the outer channels, or that tints with the other hue; of a
    degradation another one."""
    if name in _DEGRADED:
        return _DEGRADED[::-1][_DEGRADED.index(name)]
    if name.startswith("tint"):
        return f"tint{(int(name[4:]) + 6) % 12}"
    turn, order = name.split("_")
    return f"turn{(int(turn[4]) + 2) % 4}{turn[5:]}_{order[::-1]}"


KINDS = tuple(
    Kind(name=f"task_{name}", family="condition", codec="png", description="a picture changed", phrases=("a picture",))
    for name in TASKS
)


@dataclass(frozen=True, kw_only=True)
class Changes(Annotator):
    """The picture changed by every task."""

    makes: ClassVar[tuple[Kind, ...]] = KINDS
    item_facts: ClassVar[tuple[str, ...]] = ()

    def annotate(self, batch: Sequence[Request], model: Any) -> list[Derived]:
        small = [request.inputs["image"].array()[::SCALE, ::SCALE] for request in batch]
        return [Derived({f"task_{name}": enlarged(change(each)) for name, change in TASKS.items()}) for each in small]


def enlarged(picture: Colours) -> Colours:
    """Every colour as a square of eight pixels."""
    return np.kron(picture, np.ones((SCALE, SCALE, 1), np.uint8))


def task_list() -> dict[str, Any]:
    """The contents of a task list: each task makes the changed picture from the picture."""
    kinds = {kind.name: {"codec": kind.codec, "phrases": [*kind.phrases]} for kind in KINDS}
    paths = [
        {"name": name, "type": "in context", "cells": ["image", f"task_{name}"], "order": "fixed"} for name in TASKS
    ]
    return {"kinds": kinds, "paths": paths}


def write_scenes(folder: Path, count: int) -> Path:
    """Pictures of three shapes on a ground, in drawn colours."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.fromarray(enlarged(scene(number))).save(folder / f"{number:05d}.png")
    return folder


def scene(number: int) -> Colours:
    """Three shapes on a ground in drawn colours, 8 x 8 x 3; a function of its number.

    As in most photographs light comes from above (and from one side), and warm colours are brighter: how a picture was
    turned, and its channels exchanged, shows in the result as well as in the pair.
    """
    draws = np.random.default_rng(number)
    picture = np.broadcast_to(draws.integers(0, 256, 3), (SIDE, SIDE, 3))
    rows, columns = np.mgrid[:SIDE, :SIDE]
    for _ in range(3):
        (top, left), (height, width) = draws.integers(0, 6, 2), draws.integers(2, 5, 2)
        inside = (rows >= top) & (rows < top + height) & (columns >= left) & (columns < left + width)
        if draws.random() < 0.5:
            inside = np.hypot((rows - top - height / 2) / height, (columns - left - width / 2) / width) < 0.5
        picture = np.where(inside[..., None], draws.integers(0, 256, 3), picture)
    light = np.linspace(1, 0.35, SIDE)[:, None, None] * np.linspace(1, 0.6, SIDE)[:, None]
    return np.rint(picture * light * (1, 0.75, 0.5)).astype(np.uint8)

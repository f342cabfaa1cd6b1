"""How walks are drawn, as data: masks, rows, filters, splits and held-out tasks. Defaults come first and leave no trace
in the generator's key."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

from graphbuild.tasks.instruction import Keep, Layout
from graphbuild.tasks.paths import Path, check_where

Mask = Literal["code", "paper"]
Split = Literal["train", "validation"]
Weights = Literal["listed", "coverage"]

ROWS = (0.3, 0.4, 0.3)
"""Probability of 1, 2, 3 rows, the query included (VisualCloze, released training code)."""

MASK_CHANCE = 0.5
"""How often a mask is drawn, in the released code and in the paper (VisualCloze, arXiv 2504.07960)."""


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Tasks that are kept away from training: those that are given all of `given` and generate all of `holes`.

    It is matched after the mask is drawn, so that no random mask trains a task in reverse. A sampler refuses kinds
    that neither its paths nor `graphbuild.KINDS` have.

    Attributes:
        given: kinds among the shown cells of the query row; empty for any.
        holes: kinds among its holes; empty for any.

    Raises:
        ValueError: both are empty.
    """

    given: tuple[str, ...] = ()
    holes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.given and not self.holes:
            raise ValueError("held_out: neither given nor holes; allowed: at least one kind")
        for name in ("given", "holes"):
            kinds = getattr(self, name)
            object.__setattr__(self, name, (kinds,) if isinstance(kinds, str) else tuple(kinds))

    def matches(self, given: Collection[str], holes: Collection[str]) -> bool:
        """True if a task with these kinds given and generated is held out."""
        return set(self.given) <= set(given) and set(self.holes) <= set(holes)


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """The switches of a sampler; the first value named is the default.

    Attributes:
        mask: for paths with one target. `code`: with probability 1/2 the hole is any one column instead of the target,
            as in the released training code. `paper`: with probability 1/2 one of the others is a hole as well.
        rows: relative chances of 1, 2, ... rows, the query included.
        weights: of the paths of a type. `listed`: as the list says. `coverage`: times the number of items that serve a
            path, so that the few items of a rare path are not seen more often than the many of another.
        keep: chances of keeping parts of the words in training; evaluation keeps all.
        layout: the layout sentence, `pipeline` or `random`.
        where: conditions on items beside those of a path; see `graphbuild.store.conditions`.
        split: None for all items, or the side of the leakage split to draw from.
        validation: the share of leakage groups that is on the validation side.
        held_out: tasks that are never drawn.

    Raises:
        ValueError: a value is not allowed; the message says what is.
    """

    mask: Mask = "code"
    rows: tuple[float, ...] = ROWS
    weights: Weights = "listed"
    keep: Keep = field(default_factory=Keep)
    layout: Layout = "pipeline"
    where: Mapping[str, Any] = field(default_factory=dict)
    split: Split | None = None
    validation: float = 0.05
    held_out: tuple[HeldOut, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", tuple(float(weight) for weight in self.rows))
        held_out = self.held_out
        object.__setattr__(self, "held_out", (held_out,) if isinstance(held_out, HeldOut) else tuple(held_out))
        object.__setattr__(self, "where", dict(self.where))
        check_where(self.where)
        allowed = {
            "mask": get_args(Mask),
            "weights": get_args(Weights),
            "layout": get_args(Layout),
            "split": (None, *get_args(Split)),
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name}: {getattr(self, name)!r}; allowed: {', '.join(map(str, values))}")
        if not sum(self.rows) > 0 or any(not (math.isfinite(weight) and weight >= 0) for weight in self.rows):
            raise ValueError(f"rows: {self.rows}; allowed: finite weights >= 0 with a positive sum")
        if not 0 <= self.validation <= 1:
            raise ValueError(f"validation: {self.validation!r}; allowed: 0..1")

    def changed(self) -> dict[str, Any]:
        """The switches that are not at their default, as JSON values: what goes into the generator's key."""
        values = asdict(self)
        return {f.name: values[f.name] for f in fields(self) if getattr(self, f.name) != getattr(_DEFAULTS, f.name)}


_DEFAULTS = SamplerConfig()

Cells = frozenset[int]
"""Positions in a path's cells."""


def masks(path: Path, config: SamplerConfig) -> list[tuple[Cells, float]]:
    """What may be a hole in a path, as cells, and how likely it is; held-out masks are left out and give their chance
    to the others. Nothing if the path's own targets are held out: then it is not served.
    """
    targets = frozenset(path.targets)
    chances = {targets: 1.0}
    if len(targets) == 1:
        others = _one_more(path) if config.mask == "paper" else [frozenset({cell}) for cell in range(len(path.cells))]
        if others:
            chances[targets] -= MASK_CHANCE
        for cells in others:
            chances[cells] = chances.get(cells, 0.0) + MASK_CHANCE / len(others)
    allowed = {cells: chance for cells, chance in chances.items() if not is_held_out(path, cells, config)}
    total = sum(allowed.values())
    return [(cells, chance / total) for cells, chance in allowed.items()] if targets in allowed else []


def is_held_out(path: Path, holes: Cells, config: SamplerConfig) -> bool:
    """Whether a path with these cells as holes is a held-out task."""
    hidden = [kind for cell, kind in enumerate(path.kinds) if cell in holes]
    given = [kind for cell, kind in enumerate(path.kinds) if cell not in holes]
    return any(task.matches(given, hidden) for task in config.held_out)


def _one_more(path: Path) -> list[Cells]:
    (target,) = path.targets
    return [frozenset({cell, target}) for cell in range(len(path.cells)) if cell != target]

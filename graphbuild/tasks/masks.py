"""Masks: which cells of a path are holes, with their probabilities."""

from __future__ import annotations

from graphbuild.tasks.config import SamplerConfig
from graphbuild.tasks.paths import TaskPath

MASK_CHANCE = 0.5
"""How often a mask is drawn, in the released code and in the paper (VisualCloze, arXiv 2504.07960)."""

Cells = frozenset[int]
"""Positions in a path's cells."""


def masks(path: TaskPath, config: SamplerConfig) -> list[tuple[Cells, float]]:
    """The masks of a path, as sets of cells, with their probabilities. Held-out masks are dropped and the others
    renormalised. Empty if the path's own targets are held out: then it is not served.
    """
    targets = frozenset(path.targets)
    chances = {targets: 1.0}
    if len(targets) == 1 and config.mask != "target":
        others = _one_more(path) if config.mask == "paper" else [frozenset({cell}) for cell in range(len(path.cells))]
        if others:
            chances[targets] -= MASK_CHANCE
        for cells in others:
            chances[cells] = chances.get(cells, 0.0) + MASK_CHANCE / len(others)
    allowed = {cells: chance for cells, chance in chances.items() if not is_held_out(path, cells, config)}
    total = sum(allowed.values())
    return [(cells, chance / total) for cells, chance in allowed.items()] if targets in allowed else []


def is_held_out(path: TaskPath, holes: Cells, config: SamplerConfig) -> bool:
    """Whether a path with these cells as holes is a held-out task."""
    hidden = [kind for cell, kind in enumerate(path.kinds) if cell in holes]
    given = [kind for cell, kind in enumerate(path.kinds) if cell not in holes]
    return any(task.matches(given, hidden) for task in config.held_out)


def _one_more(path: TaskPath) -> list[Cells]:
    (target,) = path.targets
    return [frozenset({cell, target}) for cell in range(len(path.cells)) if cell != target]

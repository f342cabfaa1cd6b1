"""Pictures of the proof: errors by number of rows, and what was made of some walks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

Figures = Mapping[str, Mapping[str, tuple[float, float, float]]]
"""Seen or held-out tasks -> what filled the hole -> mean squared error and its interval."""

COLOURS = {"seen tasks": "#1f6f8b", "held-out tasks": "#d1495b"}
COLUMNS = ("example 1", "", "example 2", "", "condition", "1 row", "2 rows", "3 rows", "truth")


def draw_errors(found: Mapping[str, Figures], file: Path) -> None:
    """One panel for each objective: error against rows, with the controls beside."""
    figure = Figure(figsize=(2.6 * len(found) + 1, 3.6), layout="constrained")
    panels = figure.subplots(1, len(found), sharey=True, squeeze=False)[0]
    for panel, (objective, figures) in zip(panels, found.items(), strict=True):
        for name, errors in figures.items():
            mean, low, high = np.array([errors[f"R={rows}"] for rows in (1, 2, 3)]).T
            panel.errorbar((1, 2, 3), mean, (mean - low, high - mean), color=COLOURS[name], marker="o", label=name)
            panel.plot(3, errors["wrong rows"][0], "x", color=COLOURS[name], label=f"{name}, wrong rows")
        seen = figures["seen tasks"]
        for control, dashes in (("copied condition", ":"), ("mean picture", "--")):
            panel.axhline(seen[control][0], color="grey", linestyle=dashes, linewidth=1, label=f"{control}, seen tasks")
        panel.set(title=objective, xlabel="rows of the grid", xticks=(1, 2, 3), yscale="log")
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("mean squared error of the made cell")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    figure.savefig(file, dpi=150)


def draw_curves(panels: Mapping[str, Mapping[str, Mapping[int, tuple[float, float, float]]]], file: Path) -> None:
    """One panel for each comparison: error against steps, a line for each run."""
    figure = Figure(figsize=(4 * len(panels), 3.2), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for panel, (title, runs) in zip(axes, panels.items(), strict=True):
        for run, curve in runs.items():
            mean, low, high = np.array([*curve.values()]).T
            panel.errorbar([*curve], mean, (mean - low, high - mean), marker="o", capsize=2, label=run)
        panel.set(title=title, xlabel="steps", xticks=[*curve])
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(frameon=False, fontsize=8)
    axes[0].set(ylabel="mean squared error, held-out tasks", ylim=(0, None))
    figure.savefig(file, dpi=150)


def draw_walks(strips: Sequence[Sequence[NDArray[np.uint8]]], file: Path) -> None:
    """One line for each walk; its cells are named above."""
    figure = Figure(figsize=(len(COLUMNS), len(strips) + 0.3), layout="constrained")
    panels = figure.subplots(len(strips), len(COLUMNS), squeeze=False)
    for line, cells in zip(panels, strips, strict=True):
        for panel, cell in zip(line, cells, strict=True):
            panel.imshow(cell, interpolation="nearest")
            panel.set_axis_off()
    for panel, name in zip(panels[0], COLUMNS, strict=True):
        panel.set_title(name, fontsize=8)
    figure.savefig(file, dpi=120)

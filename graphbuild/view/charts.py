"""Lines and bars as coordinates of an SVG picture; the templates draw them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

WIDTH, HEIGHT = 640, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 12, 12, 28
MOST_LINES = 10
"""Colours in the style sheet."""

Point = tuple[float, float]


class Line(NamedTuple):
    """A series as the `points` of a polyline, and its last value."""

    name: str
    points: str
    last: str


class Tick(NamedTuple):
    """A mark of an axis, in pixels, and its text."""

    at: float
    text: str


class Bar(NamedTuple):
    """A bar of a histogram in pixels, and what it counts."""

    x: float
    y: float
    width: float
    height: float
    title: str


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart of `WIDTH` x `HEIGHT`; `left_out` series beyond `MOST_LINES` have no line."""

    title: str
    lines: Sequence[Line] = ()
    left_out: int = 0
    bars: Sequence[Bar] = ()
    across: Sequence[Tick] = ()
    up: Sequence[Tick] = ()
    left: int = _LEFT
    right: int = WIDTH - _RIGHT
    bottom: int = HEIGHT - _BOTTOM
    width: int = WIDTH
    height: int = HEIGHT


def line_chart(title: str, series: Mapping[str, Sequence[Point]]) -> Chart | None:
    """One line for each series of (x, y); None without a point. Values that are not finite are left out."""
    kept = {name: [p for p in points if all(map(math.isfinite, p))] for name, points in series.items()}
    kept = {name: points for name, points in kept.items() if points}
    if not kept:
        return None
    every = [point for points in kept.values() for point in points]
    x = _Scale.of([point[0] for point in every], _LEFT, WIDTH - _RIGHT)
    y = _Scale.of([point[1] for point in every], HEIGHT - _BOTTOM, _TOP)
    lines = [
        Line(name, " ".join(f"{x.at(a):.1f},{y.at(b):.1f}" for a, b in points), f"{points[-1][1]:.4g}")
        for name, points in list(kept.items())[:MOST_LINES]
    ]
    return Chart(title=title, lines=lines, left_out=len(kept) - len(lines), across=x.ticks(6), up=y.ticks(4))


def histogram(title: str, values: Sequence[float], bins: int = 24) -> Chart | None:
    """How many values lie where; None without a value."""
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return None
    x = _Scale.of(known, _LEFT, WIDTH - _RIGHT)
    counts = [0] * bins
    for value in known:
        counts[min(bins - 1, int((value - x.low) / (x.high - x.low) * bins))] += 1
    y = _Scale(0, max(counts), HEIGHT - _BOTTOM, _TOP)
    step = (x.stop - x.start) / bins
    width = (x.high - x.low) / bins
    bars = [
        Bar(x.start + step * number, y.at(count), step - 1, y.start - y.at(count),
            f"{x.low + width * number:.3g} to {x.low + width * (number + 1):.3g}: {count}")
        for number, count in enumerate(counts) if count
    ]  # fmt: skip
    return Chart(title=title, bars=bars, across=x.ticks(6), up=y.ticks(4))


def thinned(points: Sequence[Point], most: int = 300) -> list[Point]:
    """At most `most` points: means of neighbours."""
    size = -(-len(points) // most)
    groups = (points[start : start + size] for start in range(0, len(points), max(1, size)))
    return [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]


@dataclass(frozen=True)
class _Scale:
    """Values low..high on pixels start..stop."""

    low: float
    high: float
    start: float
    stop: float

    @classmethod
    def of(cls, values: Sequence[float], start: float, stop: float) -> _Scale:
        low, high = min(values), max(values)
        if low == high:
            low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
        return cls(low, high, start, stop)

    def at(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.stop - self.start)

    def ticks(self, about: int) -> list[Tick]:
        """Marks at round values."""
        raw = (self.high - self.low) / about
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        values = (step * number for number in range(first, math.floor(self.high / step + 1e-9) + 1))
        return [Tick(self.at(value), f"{0.0 if abs(value) < step / 1e6 else value:.6g}") for value in values]

"""Few tones: quantization. Parameters: VisualCloze (arXiv 2504.07960)."""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from graphbuild.images.degradations.pixels import Pixels, apply_curve, draw_level, draw_one, histograms, levels

_OTSU_CLASSES = (15, 11, 8)
_MEDIAN_COLORS = (20, 15, 10)
_EQUALISED_LEVELS = (24, 16, 8)

_Vector = NDArray[np.float64]


def quantization(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Few levels a channel, by multi-level Otsu, median cut or equalised steps; the severity is capped at 3.

    uint8 0..255, H x W x 3 RGB or H x W grey -> same shape. Source: VisualCloze `quantization`: 15, 11, 8 classes;
    20, 15, 10 colours; 24, 16, 8 levels. Everything happens in the histograms, so the cost hardly grows with size.
    """
    method = draw_one(rng, (_otsu, _median_cut, _equalised))
    level = draw_level(rng, cap=3)
    return method(pixels, level)


def _otsu(pixels: Pixels, level: int) -> Pixels:
    return _curves(
        pixels, [_posterised(count, otsu_edges(count, _OTSU_CLASSES[level])) for count in histograms(pixels)]
    )


def _median_cut(pixels: Pixels, level: int) -> Pixels:
    counts = histograms(pixels)
    return _curves(pixels, [_posterised(count, median_edges(count, _MEDIAN_COLORS[level])) for count in counts])


def _equalised(pixels: Pixels, level: int) -> Pixels:
    steps = _EQUALISED_LEVELS[level]
    counts = histograms(pixels).sum(axis=0)
    if np.count_nonzero(counts) == 1:
        return pixels.copy()  # nothing to spread out
    rank = np.cumsum(counts) - counts[np.flatnonzero(counts)[0]]
    step = np.clip(np.floor(rank / rank[-1] * steps), 0, steps - 1)
    return apply_curve(pixels, step * (255 / (steps - 1)))


def otsu_edges(counts: _Vector, classes: int) -> list[int]:
    """First levels of the classes that leave the least variance within them: multi-level Otsu, exact.

    Args:
        counts: the histogram, shape (256,).
        classes: how many; fewer come back if the histogram has fewer levels.

    Dynamic programming over the levels costs classes * 256^2, where trying every set of thresholds
    costs 256^classes.
    """
    used = np.flatnonzero(counts)
    inside = _variance_within(used.astype(np.float64), counts[used])
    best, firsts = inside[0], []
    for _ in range(min(classes, len(used)) - 1):
        # Row f: the last class starts at f, so the others end at f - 1.
        costs = inside + np.concatenate([[np.inf], best[:-1]])[:, np.newaxis]
        firsts.append(np.argmin(costs, axis=0))
        best = costs[firsts[-1], np.arange(len(used))]
    edges, last = [0], len(used) - 1
    for first in reversed(firsts):
        start = int(first[last])
        edges.append(int(used[start]))
        last = start - 1
    return sorted(edges)


def median_edges(counts: _Vector, colors: int) -> list[int]:
    """First levels of the classes of a median cut: the fullest one is halved by count until there are `colors`."""
    rank = np.concatenate([[0.0], np.cumsum(counts)])
    edges = [0, 256]
    while len(edges) <= colors:
        sizes = [rank[stop] - rank[start] if stop - start > 1 else 0 for start, stop in pairwise(edges)]
        fullest = int(np.argmax(sizes))
        if sizes[fullest] == 0:
            break
        start, stop = edges[fullest], edges[fullest + 1]
        middle = int(np.searchsorted(rank, (rank[start] + rank[stop]) / 2))
        edges.insert(fullest + 1, min(max(middle, start + 1), stop - 1))
    return edges[:-1]


def _variance_within(values: _Vector, weights: _Vector) -> _Vector:
    """Sum of squared distances from the mean in each run [first, last] of values, shape (N, N); inf if last < first."""
    moments = np.stack([weights, weights * values, weights * values**2])
    upto = np.cumsum(moments, axis=1)
    total, first, second = upto[:, np.newaxis, :] - (upto - moments)[:, :, np.newaxis]
    within = second - first**2 / np.maximum(total, 1)
    return np.where(np.tri(len(values), k=-1, dtype=bool), np.inf, within)


def _posterised(counts: _Vector, edges: list[int]) -> _Vector:
    """The curve that sends each class, given by its first level, to its mean level; shape (256,)."""
    mass, moment = np.add.reduceat(counts, edges), np.add.reduceat(counts * levels(), edges)
    return np.repeat(moment / np.maximum(mass, 1), np.diff([*edges, 256]))


def _curves(pixels: Pixels, curves: list[_Vector]) -> Pixels:
    return apply_curve(pixels, curves[0] if pixels.ndim == 2 else np.stack(curves))

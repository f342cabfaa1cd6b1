"""Figures with their intervals, from what was measured of each picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_RESAMPLES = 1000
_RESAMPLES_OF_SETS = 100
"""A distance of sets takes a decomposition each time."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A metric of one task, by one method, with so many context rows.

    Attributes:
        task: name of the path, with the hole if it has several.
        table: in which of the tables it belongs.
        unseen: whether the task was held out of the training.
        low, high: 95 % interval, bootstrapped over walks.
        count: pictures.
    """

    task: str
    table: str
    unseen: bool
    method: str
    context: int
    metric: str
    value: float
    low: float
    high: float
    count: int


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and 95 % interval of the percentile bootstrap (B. Efron, 1979), the same for the same values in order."""
    found = np.asarray(values, np.float64)
    draws = np.random.Generator(np.random.PCG64(0)).integers(0, len(found), (_RESAMPLES, len(found)))
    low, high = np.percentile(found[draws].mean(1), (2.5, 97.5))
    return float(found.mean()), float(low), float(high)


def interval_of_sets(
    distance: Callable[[NDArray[np.float64], NDArray[np.float64]], float],
    made: NDArray[np.float64],
    truth: NDArray[np.float64],
) -> tuple[float, float, float]:
    """The same of a distance between two sets of features, N x F each, resampled in pairs. The interval is shifted by
    the bootstrap's bias: sets in which vectors come twice lie further apart."""
    draws = np.random.Generator(np.random.PCG64(0)).integers(0, len(made), (_RESAMPLES_OF_SETS, len(made)))
    value, again = distance(made, truth), np.array([distance(made[chosen], truth[chosen]) for chosen in draws])
    low, high = np.percentile(again - (again.mean() - value), (2.5, 97.5))
    return value, max(0.0, float(low)), float(high)

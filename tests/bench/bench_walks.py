"""Walks per second, and how they depend on the number of items: `python tests/bench/bench_walks.py`.

All 134 paths over made-up presence arrays: every kind of 10^3 to 10^7 items, `--gaps` of the nodes missing. Ids only:
as arrays (`walks(start, n)`), as `Walk` objects (iterating over them), and one at a time (`walk(i)`, random i). The
clock is the processor's, so the rates are those of one core; sizes take turns, the middle of the rounds is shown.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
from numpy.typing import NDArray

from graphbuild.contracts import ITEMS
from graphbuild.kinds.registry import KINDS
from graphbuild.tasks.paths import load
from graphbuild.tasks.sampler import PathSampler
from tests.support.benchmarks import record

SINGLE = 2000
ROUNDS = 5


class Presence:
    """What a sampler asks of a graph, without one: kinds, presence, and no edges, groups or splits."""

    url = "made-up"
    store = None
    excluded: Mapping[str, str] = {}
    excluded_items: Mapping[int, str] = {}

    def __init__(self, items: int, gaps: float) -> None:
        self.num_items, self.digest = items, f"bench-{items}-{gaps}"
        self.head = {name: None for name, kind in KINDS.items() if not kind.is_computed}
        self._gaps, self._rng = gaps, np.random.default_rng(0)

    def presence(self, kind: str) -> NDArray[np.bool_]:
        shape = (self.num_items, 3 if KINDS[kind].family in ("style", "edit") else 1)
        return self._rng.random(shape, np.float32) >= self._gaps if self._gaps else np.ones(shape, bool)

    def commits(self, kind: str) -> list[Any]:
        return []

    def items(self) -> Any:
        return ITEMS.empty_table()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--powers", type=int, nargs="+", default=[3, 4, 5, 6, 7])
    parser.add_argument("--gaps", type=float, default=0.0)
    parser.add_argument("--count", type=int, default=100_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        os.environ["GRAPHBUILD_CACHE"] = cache
        samplers = {10**power: prepared(10**power, options.gaps) for power in options.powers}
        rounds = [{n: measured(s, options.count) for n, (s, _) in samplers.items()} for _ in range(ROUNDS)]
    print(f"{'items':>10} {'set up s':>9} {'walks/s, arrays':>16} {'walks/s, objects':>17} {'us a walk(i)':>13}")
    for items, (_, ready) in samplers.items():
        arrays, objects, single = (statistics.median(times) for times in zip(*(r[items] for r in rounds), strict=True))
        print(f"{items:>10} {ready:>9.2f} {1 / arrays:>16,.0f} {1 / objects:>17,.0f} {single * 1e6:>13.0f}")
        record(f"walks of {items} items, as arrays", ours=1 / arrays, unit="walks/s")


def prepared(items: int, gaps: float) -> tuple[PathSampler, float]:
    """A sampler, and the seconds that took."""
    started, paths = time.process_time(), replace(load("graph200k"), kind_where={})  # nobody rated made-up pairs
    return PathSampler(Presence(items, gaps), paths), time.process_time() - started  # type: ignore[arg-type]


def measured(sampler: PathSampler, count: int) -> tuple[float, float, float]:
    """Seconds a walk: as arrays, as objects, one at a time."""
    some = np.random.default_rng(0).integers(0, 1 << 40, SINGLE).tolist()
    return (
        seconds(lambda: sampler.walks(0, count)) / count,
        seconds(lambda: list(sampler.walks(0, count))) / count,
        seconds(lambda: [sampler.walk(index) for index in some]) / SINGLE,
    )


def seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


if __name__ == "__main__":
    main()

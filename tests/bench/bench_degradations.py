"""Milliseconds of every degradation at 512x512 on one core: `python tests/bench/bench_degradations.py`.

For each name: the mean over seeds and the slowest seed, each the best of three runs, after one warm-up.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import cv2
import numpy as np
import skimage.data

sys.path.insert(0, str(Path(__file__).parents[2]))

from graphbuild.images.degradations import NAMES, apply
from tests.support.benchmarks import record

NUM_SEEDS = 24
NUM_RUNS = 3


def milliseconds(name: str, pixels: np.ndarray, seed: int) -> float:
    runs = []
    for _ in range(NUM_RUNS):
        start = time.perf_counter()
        apply(name, pixels, seed)
        runs.append(time.perf_counter() - start)
    return min(runs) * 1000


def main() -> None:
    cv2.setNumThreads(1)
    pixels = np.asarray(skimage.data.astronaut(), dtype=np.uint8)
    means = []
    print(f"{'degradation':22s} {'mean ms':>8s} {'max ms':>8s}")
    for name in NAMES:
        for seed in range(NUM_SEEDS):
            apply(name, pixels, seed)
        times = [milliseconds(name, pixels, seed) for seed in range(NUM_SEEDS)]
        means.append(float(np.mean(times)))
        print(f"{name:22s} {means[-1]:8.2f} {max(times):8.2f}")
    print(f"over {len(NAMES)} names: max {max(means):.2f} ms, median {np.median(means):.2f} ms")
    record("a degradation at 512 x 512, middle", ours=float(np.median(means)), unit="ms")
    record("a degradation at 512 x 512, slowest", ours=max(means), unit="ms")


if __name__ == "__main__":
    main()

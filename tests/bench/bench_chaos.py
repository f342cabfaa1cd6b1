"""Kill workers, nodes and drivers of a cluster on this machine, at random; compare the graph with an undisturbed one.

`python tests/bench/bench_chaos.py --kills 200`: several rounds, each a new graph, until there were enough kills."""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--photos", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="graphbuild-chaos-") as folder:
        os.environ |= {"GRAPHBUILD_TEST_CONTROL": folder, "RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT)}
        sys.exit(rounds(Path(folder), asked.kills, asked.photos, asked.seed))


def rounds(folder: Path, most: int, photos: int, seed: int) -> int:
    """Exit code: 1 if a graph differs."""
    from tests.support.annotators import build, complete
    from tests.support.chaos import Chaos, Mounted, annotators_of, cluster_of, differences, photos_with_damage

    source = Mounted(path=str(photos_with_damage(folder / "photos", photos)), tag="chaos")
    annotators, declared = annotators_of("chaos", 0.1), {"p11.png": "kill", "p29.png": "hang"}
    complete(build(source, folder / "whole", annotators, shard_size=5))
    (folder / "chaos.orders").write_text("".join(f"{what} {key}\n" for key, what in declared.items()))
    kills: Counter[str] = Counter()
    wrong = 0
    while kills.total() < most:
        seed, began = seed + 1, time.monotonic()
        out, log = folder / f"g{seed}", folder / f"log{seed}"
        with cluster_of(far="unmounted", broken="cuda empty") as cluster:
            options = {"address": cluster.address, "shard_size": 5, "flush_s": 0.2}
            chaos = Chaos(cluster, source, out, annotators, log, random.Random(seed), options)
            chaos.run(most=most - kills.total(), pause=0.6)
        found = differences(out, folder / "whole", set(declared))
        kills, wrong = kills + chaos.kills, wrong + bool(found)
        told = ", ".join(f"{count} {what}s" for what, count in sorted(chaos.kills.items()))
        print(f"seed {seed}: killed {told}; {time.monotonic() - began:.0f} s; {found or 'the same graph'}", flush=True)
        if found:
            print(log.read_text())
    print(f"{kills.total()} kills ({dict(kills)}), {wrong} graphs differ")
    return min(wrong, 1)


if __name__ == "__main__":
    main()

"""Kill workers, nodes and drivers of a cluster on this machine, at random; compare the graph with an undisturbed one.

`python tests/bench/bench_chaos.py --kills 200`: several graphs on one cluster, until there were enough kills."""

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

DECK = ("worker",) * 8 + ("node", "driver")
"""Of ten kills."""


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
    rng = random.Random(seed)
    deck = [what for _ in range(-(-most // 10)) for what in rng.sample(DECK, len(DECK))][:most]
    kills: Counter[str] = Counter()
    wrong = 0
    with cluster_of(far="unmounted", broken="cuda") as cluster:
        options = {"address": cluster.address, "shard_size": 5, "flush_s": 0.2, "wait_s": 120.0}
        while deck:
            number, began = kills.total(), time.monotonic()
            out, log = folder / f"g{number}", folder / f"log{number}"
            chaos = Chaos(cluster, source, out, annotators, log, rng, {11, 29}, deck, options)
            chaos.run(pause=0.4)
            pardoned = given_up(out) - set(declared)  # killed three times by chance: retried, as its reason says
            if pardoned:
                chaos.again()
            found = differences(out, folder / "whole", {*declared, *pardoned})
            found += unexplained(out, declared, log.read_text())
            kills, wrong = kills + chaos.kills, wrong + bool(found)
            told = ", ".join(f"{count} {what}s" for what, count in sorted(chaos.kills.items()))
            told += f", {len(pardoned)} rows retried" if pardoned else ""
            print(f"killed {told}; {time.monotonic() - began:.0f} s; {found or 'the same graph'}", flush=True)
            if found:
                print(log.read_text())
    print(f"{kills.total()} kills ({dict(kills)}), {wrong} graphs differ")
    return min(wrong, 1)


def given_up(out: Path) -> set[str]:
    """Keys of the items with a row that cost too many workers."""
    from graphbuild.store.graph import Graph

    graph = Graph.open(out)
    keys = graph.items().column("key").to_pylist()
    rows = [row for kind in graph.kinds() for row in graph.edges(kind).to_pylist()]
    return {keys[row["item_ix"]] for row in rows if row["reason"] in {"killed_worker", "timeout"}}


def unexplained(out: Path, declared: dict[str, str], said: str) -> list[str]:
    """What a run was silent about: rows without the reason that they are missing for, the node without the source."""
    from graphbuild.store.graph import Graph
    from tests.support.annotators import leftovers

    graph = Graph.open(out)
    keys = graph.items().column("key").to_pylist()
    reasons = {keys[row["item_ix"]]: row["reason"] for row in graph.edges("canny").to_pylist() if row["status"] != "ok"}
    own = {key: reasons.pop(key, None) for key in declared}
    found = [f"{key}: {why}" for key, why in own.items() if why not in {"killed_worker", "timeout"}]
    found += [f"{key}: {why}" for key, why in reasons.items() if why != "parent_failed"]
    found += [] if "node far" in said and "is not a folder" in said else ["the node without the source is not named"]
    return found + leftovers(out)


if __name__ == "__main__":
    main()

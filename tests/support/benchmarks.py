"""What a benchmark measured, kept for the table and the file of `tests/bench/run.py`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from graphbuild.cli.bench import Result

RECORDS = "GRAPHBUILD_BENCH_RECORDS"
"""Variable with the file that results are added to; without it they are only printed."""


def record(
    work: str,
    *,
    ours: float,
    unit: str,
    peer: float | None = None,
    ratio: float | None = None,
    limit: float | None = None,
) -> None:
    """Keep one result.

    Args:
        work: what was done; `ours` and `peer`, what it took or how much was done, in `unit`.
        ratio: how many times as good as the peer, the middle of paired rounds; above 1 where ours is better.
        limit: the least that `ratio` may be; without a ratio, the most that `ours` may be.
    """
    if (file := os.environ.get(RECORDS)) is not None:
        bench = Path(sys.argv[0]).stem.removeprefix("bench_")
        result = Result(bench=bench, work=work, ours=ours, unit=unit, peer=peer, ratio=ratio, limit=limit)
        with open(file, "a", encoding="utf-8") as out:
            out.write(result.model_dump_json() + "\n")

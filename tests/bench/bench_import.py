"""Seconds that `import graphbuild` takes: `python tests/bench/bench_import.py`.

The median wall time of fresh interpreters that import it, less that of bare ones; the two take turns, after one
warm-up. The same for the first attributes people use, which bring the modules behind them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.support.benchmarks import record

STATEMENTS = ("import graphbuild", "import graphbuild; graphbuild.Graph", "import graphbuild; graphbuild.run")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="3 interpreters each")
    num_runs = 3 if parser.parse_args().quick else 7
    print(f"{'statement':40s} {'s':>7s} {'min':>7s} {'max':>7s}")
    medians = []
    for statement in STATEMENTS:
        seconds = measure(statement, num_runs)
        medians.append(statistics.median(seconds))
        print(f"{statement:40s} {medians[-1]:7.3f} {min(seconds):7.3f} {max(seconds):7.3f}")
    print(f"import graphbuild: {medians[0]:.3f} s more than a bare interpreter")
    record("import graphbuild", ours=medians[0], unit="s")


def measure(statement: str, num_runs: int) -> list[float]:
    """Wall time of each pair, statement less bare."""
    interpret(statement)
    return [interpret(statement) - interpret("pass") for _ in range(num_runs)]


def interpret(statement: str) -> float:
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True, env={**os.environ, "PYTHONPATH": paths})
    return time.perf_counter() - started


if __name__ == "__main__":
    main()

"""Run benchmarks and print one table: `python tests/bench/run.py [NAME ...] [--quick]`, or `make bench`.

Each `bench_NAME.py` runs in a process of its own and tells what it measured by `tests.support.benchmarks.record`. The
results lie in `--out` with facts of the machine; `graphbuild bench compare` sets two such files beside each other.
Exit code 1 if a benchmark fails, or with `--check` if a ratio is below its limit. A limit of seconds is shown and never
checked: it says as much about the machine.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from rich.console import Console

from graphbuild import __version__
from graphbuild.cli.bench import Benchmarks, Machine, Result, table_of
from tests.support.benchmarks import RECORDS

FOLDER = Path(__file__).parent


def main() -> int:
    names = sorted(file.stem.removeprefix("bench_") for file in FOLDER.glob("bench_*.py"))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: all of {', '.join(names)}")
    parser.add_argument("--quick", action="store_true", help="short forms, of those that have one")
    parser.add_argument("--check", action="store_true", help="exit 1 if a ratio is below its limit")
    parser.add_argument("--out", default="benchmarks.json")
    args = parser.parse_args()
    if unknown := {*args.names} - {*names}:
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    failed, results = [], list[Result]()
    for name in args.names or names:
        code, found = run(FOLDER / f"bench_{name}.py", quick=args.quick)
        failed += [name] if code else []
        results += found
    found = Benchmarks(version=__version__, machine=machine(), quick=args.quick, results=results)
    Path(args.out).write_text(found.model_dump_json(indent=1) + "\n", encoding="utf-8")
    Console(width=None if sys.stdout.isatty() else 140).print(table_of(found))
    low = [result.work for result in results if result.ratio is not None and not result.holds]
    for what, which in (("failed", failed), ("below their limit", low)):
        if which:
            print(f"{what}: {', '.join(which)}")
    return 1 if failed or (args.check and low) else 0


def run(file: Path, *, quick: bool) -> tuple[int, list[Result]]:
    """Exit code and results of one benchmark, whose own output is shown."""
    print(f"== {file.name}", flush=True)
    options = ["--quick"] if quick and "--quick" in file.read_text(encoding="utf-8") else []
    with tempfile.NamedTemporaryFile(suffix=".jsonl") as records:
        env = {**os.environ, RECORDS: records.name}
        code = subprocess.run([sys.executable, str(file), *options], env=env, check=False).returncode
        lines = Path(records.name).read_text(encoding="utf-8").splitlines()
    return code, [Result.model_validate_json(line) for line in lines]


def machine() -> Machine:
    """What figures depend on besides the code."""
    cpus = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    memory = re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())
    return Machine(
        processor=cpus[0] if cpus else platform.machine(), cores=len(os.sched_getaffinity(0)),
        gigabytes=round(int(memory[1]) / 1e6) if memory else 0, system=platform.platform(),
        python=platform.python_version(), load=os.getloadavg()[0],
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())

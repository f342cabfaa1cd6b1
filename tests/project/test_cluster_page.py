"""docs/cluster.md: its commands make a cluster of two nodes on this machine; what a scheduler is given is looked at."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import yaml

from tests.project.test_docs import page, parse
from tests.support.annotators import build, complete, tree
from tests.support.documents import blocks, commands


@contextmanager
def started(command: list[str], env: dict[str, str], said: Path) -> Iterator[None]:
    """`ray start --block`, from when its node is there until the end of the block."""
    with open(said, "w") as out:
        process = subprocess.Popen(command, env=env, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while "Ray runtime started" not in said.read_text():
            assert process.poll() is None and time.monotonic() < deadline, said.read_text()[-3000:]
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.ray
def test_plain_machines(photos: Path, tmp_path: Path) -> None:
    """Guards against commands for plain machines that make no cluster, or no graph. Smaller: both nodes are this
    machine, the port is free, the annotator needs no weights."""
    (block,) = [b for b in blocks(page("docs/cluster.md")) if "ray start --head" in b.code and b.language == "sh"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    text = "\n".join(command.line for command in commands(block.code))
    for old, new in {
        "HEAD": "127.0.0.1",
        "6379": port,
        "/shared": str(tmp_path),
        "--pipeline conditions": "--source folder --annotators canny --limit 8",
    }.items():
        assert old in text
        text = text.replace(old, new)
    shutil.copytree(photos, tmp_path / "photos")
    short = tempfile.mkdtemp(prefix="gb")  # sockets of Ray need a short path, and other clusters their own
    env = {**os.environ, "RAY_ADDRESS": f"127.0.0.1:{port}", "RAY_USAGE_STATS_ENABLED": "0"}
    small = ["--block", "--num-cpus", "1", "--object-store-memory", "100000000"]
    alone = ["--include-dashboard", "false", "--temp-dir", short]
    folder = Path(sys.executable).parent
    head, node, run = ([str(folder / words[0]), *words[1:]] for words in map(shlex.split, text.splitlines()))
    try:
        with (
            started([*head, *small, *alone], env, tmp_path / "head"),
            started([*node, *small], env, tmp_path / "node"),
        ):
            done = subprocess.run(run, env=env, capture_output=True, text=True, timeout=300, check=False)
    finally:
        shutil.rmtree(short, ignore_errors=True)
    assert done.returncode == 0, done.stderr[-3000:]
    complete(build(tmp_path / "photos", tmp_path / "inline", ["canny"], limit=8))
    assert tree(tmp_path / "graph") == tree(tmp_path / "inline")


def test_what_schedulers_are_given() -> None:
    """Guards against a job that Slurm or KubeRay refuses: neither can be run here."""
    found = blocks(page("docs/cluster.md"))
    (slurm,) = [block.code.replace("\\\n", " ") for block in found if block.language == "bash"]
    lines = re.findall(r"\b(?:ray start|graphbuild run) [^&\n]*", slurm)
    assert len(lines) == 3
    for line in lines:
        parse(line.replace("$head", "head").strip())
    options = [word for line in re.findall(r"^#SBATCH (.*)$", slurm, re.MULTILINE) for word in line.split()]
    assert options and all(re.fullmatch(r"--[a-z-]+(=\S+)?", word) for word in options)
    job = next(yaml.safe_load(b.code) for b in found if b.language == "yaml" and "kind: RayJob" in b.code)
    assert job["apiVersion"] == "ray.io/v1" and job["metadata"]["name"]
    parse(job["spec"]["entrypoint"])
    cluster = job["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        assert all({"name", "image"} <= container.keys() for container in group["template"]["spec"]["containers"])
    assert all(0 <= group["minReplicas"] <= group["maxReplicas"] for group in cluster["workerGroupSpecs"])

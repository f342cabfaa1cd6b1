"""docs/cluster.md: its script for Slurm, given to a Slurm whose nodes are all this machine."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from tests.project.test_docs import page
from tests.support.annotators import Slow, build, calls, complete, tree, write_photos
from tests.support.documents import blocks
from tests.support.ports import free_ports
from tests.support.slurm import Slurm, slurm

NUMBER = 100
"""Photographs: some seconds of work, in which a job can be told that its time is over."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Slurm]:
    with pytest.MonkeyPatch.context() as patch:
        programs = [str(Path(sys.executable).parent), os.environ["PATH"], "/usr/sbin"]
        patch.setenv("PATH", os.pathsep.join(programs))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        with slurm() as found:
            yield found


def smaller(nodes: int, folder: Path, ray_folder: str) -> str:
    """The page's script, for nodes that are all this machine: a free port, little memory, a shorter wait. The head of
    two has no CPUs, so that there is no graph without the other."""
    (script,) = [b.code for b in blocks(page("docs/cluster.md")) if b.language == "bash"]
    (port,) = free_ports(1)
    for old, new in {
        "--nodes=4": f"--nodes={nodes}",
        "6379": port,
        "--head": f"--head --num-cpus {2 - nodes} --include-dashboard false --temp-dir {ray_folder}",
        "ray start --address": "ray start --num-cpus 1 --address",
        "--block": "--block --object-store-memory 100000000",
        "sleep 30": "sleep 5",
        "/shared": str(folder),
        "--pipeline conditions": f"--pipeline {folder}/mine.yaml --shard-size 10",
    }.items():
        assert old in script
        script = script.replace(old, new)
    return script


@pytest.fixture
def slow(tmp_path: Path, control: Callable[..., str]) -> Slow:
    """What `smaller` runs: some seconds of work on the photographs."""
    write_photos(tmp_path / "photos", range(NUMBER))
    use = {"use": "tests.support.annotators:Slow", "tag": control()}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"source": "folder", "annotators": [use]}))
    return Slow(tag=control())


def ended_well(cluster: Slurm, job: str, restarts: int, slow: Slow, folder: Path) -> None:
    """Wait for the job, and compare its graph."""
    cluster.wait(job, lambda: cluster.over(job), 300)
    facts = cluster.facts(job)
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", str(restarts)), cluster.said(job)[-5000:]
    complete(build(folder / "photos", folder / "inline", [slow], shard_size=10))
    assert tree(folder / "graph") == tree(folder / "inline")


@pytest.mark.slow
@pytest.mark.ray
def test_one_node(cluster: Slurm, tmp_path: Path, ray_folder: str, slow: Slow) -> None:
    """Guards against a script that needs several nodes, or makes no cluster or no graph."""
    job = cluster.submit(smaller(1, tmp_path, ray_folder))
    ended_well(cluster, job, 0, slow, tmp_path)
    assert "srun: error: Invalid" not in cluster.said(job)


@pytest.mark.slow
@pytest.mark.ray
def test_two_nodes_and_a_time_limit(cluster: Slurm, tmp_path: Path, ray_folder: str, slow: Slow) -> None:
    """Guards against a second node that does not join, and against a job that is not submitted again before its time is
    over, or kills its driver, or starts from nothing. Slurm's signal is sent by hand, as the script asks for it."""
    script = smaller(2, tmp_path, ray_folder)
    job = cluster.submit(script)
    cluster.wait(job, lambda: cluster.over(job) or len(calls(slow.tag)) > 15, 180)
    (number,) = re.findall(r"--signal=B:(\w+)@", script)
    cluster.ask("scancel", "--batch", f"--signal={number}", job)
    cluster.wait(job, lambda: cluster.over(job) or cluster.facts(job)["Restarts"] == "1", 60)
    before = len(calls(slow.tag))
    assert before < NUMBER, "signalled too late"
    cluster.wait(job, lambda: cluster.over(job), 300)
    assert len(calls(slow.tag)) <= before + NUMBER - 10, "nothing was kept"
    ended_well(cluster, job, 1, slow, tmp_path)
    assert "continue with: graphbuild run" in cluster.said(job)

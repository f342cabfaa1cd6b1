"""docs/cluster.md: its commands make a cluster of two nodes on this machine; what a scheduler is given is looked at."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest
import yaml

from graphbuild.cli import weights
from graphbuild.engine.preflight import refuse_client
from graphbuild.errors import GraphError
from tests.project.test_docs import page, parse
from tests.support.annotators import build, complete, tree
from tests.support.documents import blocks, commands
from tests.support.hub import TOKEN, hub
from tests.support.ports import free_ports


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


SMALL = ("--block", "--num-cpus", "1", "--object-store-memory", "100000000")
PROGRAMS = Path(sys.executable).parent

SKETCHES = """
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
import graphbuild as gb
import ray

@dataclass(frozen=True, kw_only=True)
class Sketch(gb.Condition):
    makes: ClassVar = ("hed",)

    def annotate(self, batch, model):
        if ray.is_initialized():
            Path("FOLDER", "cluster").write_text(ray.get_runtime_context().gcs_address)
        return [gb.Derived({"hed": r.inputs["image"].array()[:, :, 0].copy()}) for r in batch]
"""

NAPS = """
import time
from dataclasses import dataclass
from typing import ClassVar
import graphbuild as gb

@dataclass(frozen=True, kw_only=True)
class Nap(gb.Condition):
    makes: ClassVar = ("hed",)

    def annotate(self, batch, model):
        time.sleep(0.8)
        return [gb.Derived({"hed": r.inputs["image"].array()[:, :, 0].copy()}) for r in batch]
"""


def typed(begin: str, replaced: dict[str, str]) -> list[list[str]]:
    """The commands of the page's block that has one that begins so, made smaller; programs are those of this Python."""
    found = [block for block in blocks(page("docs/cluster.md")) if block.language == "sh" and begin in block.code]
    (block,) = found
    text = "\n".join(command.line for command in commands(block.code))
    for old, new in replaced.items():
        assert old in text
        text = text.replace(old, new)
    return [[str(PROGRAMS / words[0]), *words[1:]] for words in map(shlex.split, text.splitlines())]


def environment(**more: str) -> dict[str, str]:
    path = f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "RAY_USAGE_STATS_ENABLED": "0", **more}


def run(command: list[str], env: dict[str, str], folder: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    """A command that ends well, or with another code."""
    done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == code, (done.stdout[-3000:], done.stderr[-3000:])
    return done


@pytest.mark.slow
@pytest.mark.ray
def test_plain_machines(photos: Path, tmp_path: Path, ray_folder: str) -> None:
    """Guards against commands for plain machines that make no cluster, or no graph, and against checking it there that
    does not work. Smaller: both nodes are this machine, the port is free, the annotator needs no weights."""
    (port,) = free_ports(1)
    smaller = {
        "HEAD": "127.0.0.1",
        "6379": port,
        "/shared": str(tmp_path),
        "--pipeline conditions": "--source folder --annotators canny --limit 8",
    }
    head, node, build_it = typed("ray start --head", smaller)
    (check_it,) = re.findall(r"`graphbuild (verify GRAPH [^`]*--address auto)`", page("docs/cluster.md"))
    shutil.copytree(photos, tmp_path / "photos")
    env = environment(RAY_ADDRESS=f"127.0.0.1:{port}")
    alone = ["--include-dashboard", "false", "--temp-dir", ray_folder]
    with (
        started([*head, *SMALL, *alone], env, tmp_path / "head"),
        started([*node, *SMALL], env, tmp_path / "node"),
    ):
        run(build_it, env, tmp_path)
        checked = run([*build_it[:1], *check_it.replace("GRAPH", "graph").split()], env, tmp_path).stdout
        tidied = run([*build_it[:1], "gc", "graph", "--delete"], env, tmp_path).stdout
    assert ": sound" in checked and "nothing to delete" in tidied
    complete(build(tmp_path / "photos", tmp_path / "inline", ["canny"], limit=8))
    assert tree(tmp_path / "graph") == tree(tmp_path / "inline")


@pytest.mark.slow
@pytest.mark.ray
def test_submitted_job(photos: Path, tmp_path: Path, ray_folder: str) -> None:
    """Guards against a job whose code is not found, which starts a Ray of its own, or makes no graph.
    Smaller: the one node is this machine, the pipeline is one of the folder that the job takes with it."""
    port, dashboard = free_ports(2)
    smaller = {
        "HEAD:8265": f"127.0.0.1:{dashboard}",
        "/shared": str(tmp_path),
        "--pipeline conditions": "--pipeline mine.yaml --shard-size 6",
    }
    (submit,) = typed("ray job submit", smaller)
    (head, *_) = typed("ray start --head", {"6379": port})
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "sketches.py").write_text(SKETCHES.replace("FOLDER", str(tmp_path)))
    (mine / "mine.yaml").write_text("source: folder\nannotators: ['sketches:Sketch']\n")
    shutil.copytree(photos, tmp_path / "photos")
    env = environment()
    env.pop("RAY_ADDRESS", None)
    own = ["--temp-dir", ray_folder, "--dashboard-port", dashboard, "--dashboard-agent-listen-port", "0"]
    with started([*head, *SMALL, *own], env, tmp_path / "head"):
        said = run(submit, env, mine).stdout
    assert "6 of 6 units committed" in said, said
    assert (tmp_path / "cluster").read_text().endswith(f":{port}")
    again = " ".join(submit[submit.index("--") + 1 :]).replace(f"{tmp_path}/graph", f"{tmp_path}/inline")
    run([*again.split(), "--executor", "inline"], env, mine)
    assert tree(tmp_path / "graph") == tree(tmp_path / "inline")


def test_ray_client_is_told_how_to_submit() -> None:
    """Guards against a refusal that says another command than the one that was run."""
    (submit,) = typed("ray job submit", {})
    with pytest.raises(GraphError) as refused:
        refuse_client("ray://HEAD:10001")
    assert f"ray {' '.join(submit[1 : submit.index('run') + 1])} ..." in str(refused.value)


@pytest.mark.slow
def test_weights_for_every_node(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against weights in a shared folder that nodes without network do not find, and against a plan that does
    not name those that are missing. Smaller: the Hub is a stand-in, and every file of weights a few bytes."""
    (fetch,) = typed("graphbuild models fetch", {})
    wanted = weights.wanted([], fetch[fetch.index("--pipeline") + 1])
    wanted_files = [(each.repository, pattern.replace("*", "config")) for each in wanted for pattern in each.files]
    plan = [*fetch[:1], "plan", *fetch[-2:], "--path", str(photos), "--out", "graph"]
    env = environment(HF_HOME=str(tmp_path / "shared"), HF_HUB_OFFLINE="1")
    before = run(plan, env, tmp_path, 2).stderr
    assert all(each.model in before for each in wanted), before
    with hub(monkeypatch) as there:
        for repository, path in wanted_files:
            there.repositories.setdefault(f"models/{repository}", {})[path] = b"{}"
        online = {"HF_ENDPOINT": there.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
        run(fetch, env | online, tmp_path)
    listed = json.loads(run([*fetch[:2], *fetch[-2:], "--json"], env, tmp_path).stdout)
    assert [model for row in listed for model in row["checkpoints"] if not model["cached"]] == []
    assert {model["model"] for row in listed for model in row["checkpoints"]} == {each.model for each in wanted}


@pytest.mark.slow
def test_watching(photos: Path, tmp_path: Path) -> None:
    """Guards against a run that tells a dashboard nothing where the page says it looks. Smaller: the port is free."""
    text = page("docs/cluster.md")
    (command,) = re.findall(r"`graphbuild (run --json)`", text)
    (option,) = re.findall(r"`(--metrics-port \d+)`", text)
    (url,) = re.findall(r"`(http://\S+/metrics)`", text)
    (port,) = free_ports(1)
    (tmp_path / "naps.py").write_text(NAPS)
    (tmp_path / "mine.yaml").write_text("source: folder\nannotators: ['naps:Nap']\n")
    where = ["--pipeline", "mine.yaml", "--path", str(photos), "--out", "graph", "--executor", "inline"]
    words = [*command.split(), *option.split()[:1], port, *where]
    with subprocess.Popen(
        [str(PROGRAMS / "graphbuild"), *words],
        env=environment(), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        served = ""
        while process.poll() is None and 'annotator="nap",state="done"' not in served:
            with suppress(URLError), urlopen(url.replace(option.split()[1], port)) as answer:
                served = answer.read().decode()
            time.sleep(0.1)
        report, lines = process.communicate(timeout=100)
    assert process.returncode == 0 and 'annotator="nap",state="done"' in served, (served, lines)
    assert json.loads(report)["annotators"]["nap"]["ok"] == 18
    told = [json.loads(line)["annotators"]["nap"] for line in lines.splitlines()]
    assert told and 0 < told[0]["done"] < 18 and {"failed", "nbytes", "per_second", "seconds_left"} <= told[0].keys()


RAY_JOB = {
    "spec": "activeDeadlineSeconds backoffLimit clusterSelector deletionStrategy entrypoint entrypointNumCpus "
    "entrypointNumGpus entrypointResources jobId managedBy metadata preRunningDeadlineSeconds rayClusterSpec "
    "runtimeEnvYAML shutdownAfterJobFinishes submissionMode submitterConfig submitterPodTemplate suspend "
    "ttlSecondsAfterFinished",
    "cluster": "authOptions autoscalerOptions enableInTreeAutoscaling gcsFaultToleranceOptions headGroupSpec "
    "headServiceAnnotations managedBy rayVersion suspend upgradeStrategy workerGroupSpecs",
    "head": "enableIngress headService labels rayStartParams resources serviceType template",
    "worker": "groupName idleTimeoutSeconds labels maxReplicas minReplicas numOfHosts priority rayStartParams replicas "
    "resources scaleStrategy suspend template",
}
"""Fields of KubeRay's RayJob, ray.io/v1, as its definition of August 2026 has them; others are refused or dropped."""


def test_what_schedulers_are_given() -> None:
    """Guards against a job that KubeRay refuses, which cannot be run here, or Slurm, where that is not installed."""
    found = blocks(page("docs/cluster.md"))
    (slurm,) = [block.code.replace("\\\n", " ") for block in found if block.language == "bash"]
    lines = re.findall(r"\b(?:ray start|graphbuild run) [^&\n]*", slurm)
    assert len(lines) == 3
    for line in lines:
        parse(line.replace("$head", "head").strip())
    options = [word for line in re.findall(r"^#SBATCH (.*)$", slurm, re.MULTILINE) for word in line.split()]
    assert options and all(re.fullmatch(r"--[a-z-]+(=\S+)?", word) for word in options)
    job = next(yaml.safe_load(b.code) for b in found if b.language == "yaml" and "kind: RayJob" in b.code)
    assert job.keys() == {"apiVersion", "kind", "metadata", "spec"} and job["apiVersion"] == "ray.io/v1"
    assert re.fullmatch(r"[a-z]([-a-z0-9]{0,45}[a-z0-9])?", job["metadata"]["name"])
    parse(job["spec"]["entrypoint"])
    cluster = job["spec"]["rayClusterSpec"]
    head, workers = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    of = [("spec", job["spec"]), ("cluster", cluster), ("head", head), *(("worker", group) for group in workers)]
    assert [key for kind, spec in of for key in spec.keys() - set(RAY_JOB[kind].split())] == []
    for group in (head, *workers):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        (container,) = group["template"]["spec"]["containers"]
        assert {"name", "image"} <= container.keys() <= {"name", "image", "envFrom", "resources"}
    for group in workers:
        assert group["groupName"] and 0 <= group["minReplicas"] <= group["maxReplicas"]

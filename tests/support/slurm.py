"""A Slurm of a test's own, by the real programs where they are installed: a controller and nodes on this machine."""

from __future__ import annotations

import getpass
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.support.ports import free_ports

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "scancel", "scontrol", "sinfo")

# Nodes are named by addresses of the loopback, so that a script can reach them by name. They say they have what a job
# of the page asks for. No accounts, no cgroups, and no secret between the programs of one user.
CONFIGURATION = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
AuthInfo=cred_expire=5
CredType=cred/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
MailProg=/bin/true
KillWait=5
SchedulerParameters=sched_interval=2
GresTypes=gpu
SlurmdParameters=config_overrides
NodeName=127.0.0.[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{ports[1]},{ports[2]}] CPUs=64 Gres=gpu:8
PartitionName=all Nodes=ALL Default=YES State=UP
"""


class Slurm:
    """Two nodes; `folder` is where jobs are submitted and write what they say."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self.environment = environment

    def ask(self, *words: str | Path) -> str:
        """What a command of Slurm prints."""
        done = subprocess.run(
            words, env=self.environment, cwd=self.folder, capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        return done.stdout.strip()

    def submit(self, script: str) -> str:
        """The number of the job."""
        (self.folder / "job.sh").write_text(script)
        return self.ask("sbatch", "--parsable", "job.sh")

    def facts(self, job: str) -> dict[str, str]:
        """What Slurm knows of a job: `JobState`, `Restarts`, `ExitCode`, ..."""
        return dict(re.findall(r"(\w+)=(\S*)", self.ask("scontrol", "show", "job", job)))

    def over(self, job: str) -> bool:
        return self.facts(job)["JobState"] in {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}

    def said(self, job: str) -> str:
        path = self.folder / f"slurm-{job}.out"
        return path.read_text() if path.exists() else ""

    def wait(self, job: str, until: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not until():
            assert time.monotonic() < deadline, (self.facts(job), self.said(job)[-5000:])
            time.sleep(0.2)


@contextmanager
def slurm() -> Iterator[Slurm]:
    """A Slurm until the end of the block, and none of its jobs after it; skips where it is not installed."""
    if missing := [name for name in PROGRAMS if shutil.which(name) is None]:
        pytest.skip(f"no Slurm: {', '.join(missing)} not installed")
    folder = Path(tempfile.mkdtemp(prefix="gbslurm"))
    nodes = ("127.0.0.1", "127.0.0.2")
    for name in ("state", *(f"spool.{node}" for node in nodes)):
        (folder / name).mkdir()
    for number in range(8):
        (folder / f"gpu{number}").touch()
    (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-7]\n")
    conf = folder / "slurm.conf"
    here = socket.gethostname().partition(".")[0]
    conf.write_text(CONFIGURATION.format(host=here, user=getpass.getuser(), folder=folder, ports=free_ports(3)))
    cluster = Slurm(folder, {**os.environ, "SLURM_CONF": str(conf)})
    daemons = [["slurmctld"], *(["slurmd", "-N", node] for node in nodes)]
    started = []
    try:
        for number, (program, *rest) in enumerate(daemons):
            with open(folder / f"daemon{number}", "w") as out:
                command = [program, "-D", "-f", str(conf), *rest]
                started.append(subprocess.Popen(command, env=cluster.environment, stdout=out, stderr=subprocess.STDOUT))
        deadline = time.monotonic() + 60
        while _idle(cluster) < len(nodes):
            assert time.monotonic() < deadline, [path.read_text()[-2000:] for path in sorted(folder.glob("daemon*"))]
            time.sleep(0.2)
        yield cluster
    finally:
        _end(cluster)
        for process in reversed(started):
            process.terminate()
        for process in started:
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()
        shutil.rmtree(folder, ignore_errors=True)


def _idle(cluster: Slurm) -> int:
    with suppress(AssertionError):
        return cluster.ask("sinfo", "--noheader", "--Node", "--states=idle").count("127.0.0.")
    return 0


def _end(cluster: Slurm) -> None:
    """Cancel all jobs and wait until nothing of them runs."""
    with suppress(AssertionError, subprocess.TimeoutExpired):
        cluster.ask("scancel", "--user", getpass.getuser())
        deadline = time.monotonic() + 30
        while _idle(cluster) < 2 and time.monotonic() < deadline:
            time.sleep(0.2)

"""Checkpoints: all of a run comes back, a kill or a bad disk never leaves half of one, and one run a folder."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from graphbuild.errors import GraphError
from graphbuild_train import checkpoint as module
from graphbuild_train.checkpoint import Checkpoint, latest, locked, read, rng_state, save, set_rng_state, steps
from graphbuild_train.export.lora_file import read_diffusers

FINISHED = "pytorch_lora_weights.safetensors"
PROCESSES = multiprocessing.get_context("fork")


def at(step: int, **changed: Any) -> Checkpoint:
    """A small checkpoint whose tensors show their step."""
    lora = {"x.lora_A.weight": torch.full((2, 3), float(step)), "x.lora_B.weight": torch.full((4, 2), 0.5)}
    made = Checkpoint(
        step=step, next=64 * step, seed=7, config={"lora": {"rank": 2}, "shift": "dynamic"}, snapshot="0123456789ab",
        lora=lora, ema={name: tensor * 0.9 for name, tensor in lora.items()},
    )  # fmt: skip
    return replace(made, **changed)


def train(parameter: torch.nn.Parameter, optimiser: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        optimiser.zero_grad()
        (parameter.square() * torch.rand(parameter.shape)).sum().backward()
        optimiser.step()


def test_a_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    """Guards against a resume that restores weights and forgets the optimiser's moments, its step or random states:
    training 5 steps, stopping and training 5 more must equal 10 steps."""
    torch.manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(4, 3))
    optimiser = torch.optim.AdamW([parameter], lr=1e-3, weight_decay=0.01)
    train(parameter, optimiser, 5)
    state = {"w": parameter.detach()}
    save(tmp_path, at(5, lora=state, optimiser=optimiser.state_dict(), rng=rng_state()))
    train(parameter, optimiser, 5)

    torch.manual_seed(1)
    found = latest(tmp_path)
    assert found is not None
    again = torch.nn.Parameter(found.lora["w"])
    resumed = torch.optim.AdamW([again], lr=1)
    resumed.load_state_dict(dict(found.optimiser))
    set_rng_state(found.rng)
    train(again, resumed, 5)
    assert torch.equal(again, parameter)
    whole = [optimiser.state_dict()["state"][0], resumed.state_dict()["state"][0]]
    assert all(torch.equal(whole[0][name], whole[1][name]) for name in ("step", "exp_avg", "exp_avg_sq"))


def test_everything_comes_back(tmp_path: Path) -> None:
    """Guards against a field that is not written, and against pickles among the files."""
    written = at(500)
    path = save(tmp_path, written)
    assert {file.stat().st_mode & 0o777 for file in path.iterdir()} == {path.stat().st_mode & 0o666}  # the umask's
    assert path == tmp_path / "checkpoints" / "step-00000500"
    read(path)
    found = read(path)  # again: a run resumes more than once in a process
    assert (found.step, found.next, found.seed, found.config, found.snapshot) == (
        500, 32_000, 7, written.config, "0123456789ab",
    )  # fmt: skip
    for name in ("lora", "ema"):
        ours, theirs = getattr(written, name), getattr(found, name)
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert found.versions["torch"] == torch.__version__.split("+")[0] and "peft" in found.versions
    assert (found.optimiser, found.rng) == ({}, {})
    assert {file.name for file in path.iterdir()} == {FINISHED, "lora.safetensors", "state.json"}
    assert latest(tmp_path / "nothing") is None


def test_a_checkpoint_holds_the_lora_as_users_load_it(tmp_path: Path) -> None:
    """Guards against a run that was stopped and leaves nothing that a pipeline reads, and the raw weights in place of
    their average."""
    for step, ema in ((1, at(1).ema), (2, {})):
        written = at(step, ema=ema, header={"graphbuild": '{"steps_done": 1}'})
        found = read_diffusers(save(tmp_path, written))
        wanted = ema or written.lora
        assert (found.part, found.recipe) == ("transformer", {"steps_done": 1})
        assert found.state.keys() == wanted.keys()
        assert all(torch.equal(found.state[name], tensor) for name, tensor in wanted.items())


def test_checkpoints_of_before_are_read(tmp_path: Path) -> None:
    """Guards against a run of weeks that a new release cannot resume."""
    written = at(3)
    path = save(tmp_path, written)
    document = json.loads((path / "state.json").read_text())
    (path / FINISHED).unlink()
    save_file(dict(written.ema), path / "ema.safetensors")
    document["files"] = {name: module._digest(path / name) for name in ("lora.safetensors", "ema.safetensors")}
    del document["part"], document["digest"]
    (path / "state.json").write_text(json.dumps({**document, "digest": module._digest_of(document)}))
    found = read(path)
    for name in ("lora", "ema"):
        ours, theirs = getattr(written, name), getattr(found, name)
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_the_newest_few_are_kept(tmp_path: Path) -> None:
    """Guards against a disk that fills, and against later steps of an abandoned run that a restart would find."""
    for step in (100, 200, 300, 400):
        save(tmp_path, at(step), keep=2)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000300", "step-00000400"]
    save(tmp_path, at(350), keep=2)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000300", "step-00000350"]
    save(tmp_path, at(350, next=1), keep=1)
    found = latest(tmp_path)
    assert found is not None and (found.step, found.next) == (350, 1)


def test_nothing_is_removed_under_its_good_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a kill in the middle of removing an old checkpoint, which would leave half of it."""
    removed, rmtree = [], shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", lambda path: (removed.append(Path(path).name), rmtree(path)))
    for step in (1, 2, 2):
        save(tmp_path, at(step), keep=1)
    assert len(removed) == 2 and all(name.startswith(".tmp-") for name in removed)


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("damage", [cut, flip, Path.unlink])
@pytest.mark.parametrize("name", [FINISHED, "lora.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    damage: Callable[[Path], None], name: str, tmp_path: Path
) -> None:
    """Guards against a run that resumes from a half, or not at all although an older checkpoint is whole."""
    save(tmp_path, at(100))
    damage(save(tmp_path, at(200)) / name)
    with pytest.warns(UserWarning, match=rf"step-00000200/{name}: "):
        found = latest(tmp_path)
    assert found is not None and found.step == 100
    save(tmp_path, at(200), keep=1)
    found = latest(tmp_path)
    assert found is not None and found.step == 200


def test_damaged_checkpoints_alone_are_not_started_over(tmp_path: Path) -> None:
    """Guards against a run that begins at step 0, and in the end removes what a backup could have mended."""
    for step in (100, 200):
        cut(save(tmp_path, at(step)) / "lora.safetensors")
    with pytest.raises(GraphError, match=r"step-00000200/lora.*step-00000100/lora.*no checkpoint is whole: restore"):
        latest(tmp_path)
    assert steps(tmp_path) == [100, 200]


def test_a_changed_number_is_noticed(tmp_path: Path) -> None:
    """Guards against a data position that a bad disk or an editor moved."""
    file = save(tmp_path, at(100)) / "state.json"
    file.write_text(file.read_text().replace(str(64 * 100), str(64 * 101)))
    with pytest.raises(module.DamagedCheckpoint, match="changed"):
        read(file.parent)
    for text in ("[]", "7", "[" * 100_000):
        file.write_text(text)
        with pytest.raises(module.DamagedCheckpoint, match="not what was written"):
            read(file.parent)


def save_and_die(out: Path, step: int, line: int) -> None:
    """Save, and be killed when the module has executed a number of lines."""
    left = line

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if frame.f_code.co_filename != module.__file__:
            return None
        left -= event == "line"
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)
    save(out, at(step, ema={}), keep=1)
    sys.settrace(None)


def run(function: Callable[..., None], *arguments: Any) -> int:
    """Exit status of a process of its own; minus the signal if it was killed."""
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        function(*arguments)
    except BaseException:
        os._exit(1)
    os._exit(0)


def test_a_kill_at_any_line_leaves_the_old_or_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against any order of writing, renaming and removing in which a kill costs the only checkpoint. The folder
    lives on through all kills, as that of an unlucky run does."""
    monkeypatch.setattr(os, "fsync", lambda _: None)  # a kill loses no pages, and disks are slow
    seen = []
    for line in range(1000):
        step = 2 * line + 1
        save(tmp_path, at(step, ema={}), keep=1)
        code = run(save_and_die, tmp_path, step + 1, line)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = latest(tmp_path)
        assert found is not None and float(found.lora["x.lora_A.weight"][0, 0]) == found.step
        seen.append(found.step - step)
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert seen == sorted(seen) and set(seen) == {0, 1} and len(seen) > 60
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [f"step-{step + 1:08d}"]


def save_on(out: Path, first: int) -> None:
    for step in range(first, first + 10_000):
        save(out, at(step), keep=2)


def test_kills_at_random_moments(tmp_path: Path) -> None:
    """Guards against a half that only a kill inside a library's writing makes."""
    before = 0
    for round_ in range(12):
        process = PROCESSES.Process(target=save_on, args=(tmp_path, before + 1))
        process.start()
        time.sleep(0.05 + 0.0137 * round_)
        process.kill()
        process.join(30)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = latest(tmp_path)
        if found is not None:
            assert found.step >= before and float(found.lora["x.lora_A.weight"][0, 0]) == found.step
            before = found.step
    assert before > 12


def test_bytes_are_on_the_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a power cut that leaves an empty file under a good name: a kill alone does not show that."""
    done: list[str] = []
    fsync, rename = os.fsync, Path.rename
    monkeypatch.setattr(os, "fsync", lambda fd: (done.append(Path(os.readlink(f"/proc/self/fd/{fd}")).name), fsync(fd)))
    monkeypatch.setattr(Path, "rename", lambda path, to: (done.append(f"{path.name}>{to.name}"), rename(path, to))[1])
    save(tmp_path, at(1))
    temporary = ".tmp-step-00000001"
    moved = done.index(f"{temporary}>step-00000001")
    assert set(done[:moved]) == {FINISHED, "lora.safetensors", "state.json", temporary}
    assert done[moved - 1] == temporary and done[moved + 1] == "checkpoints"


def test_two_runs_cannot_share_a_folder(tmp_path: Path) -> None:
    """Guards against two runs that overwrite each other's checkpoints."""
    with locked(tmp_path):
        with pytest.raises(GraphError, match=rf"process {os.getpid()} on .* is training into it"), locked(tmp_path):
            pass
        assert run(enter, tmp_path) == 1
    with locked(tmp_path):
        pass


def enter(out: Path) -> None:
    with locked(out):
        pass


WORKER = """
import multiprocessing, sys, time
from pathlib import Path
from graphbuild_train.checkpoint import locked
with locked(Path(sys.argv[1])):
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    child.start()
    print(child.pid, flush=True)
    time.sleep(60)
"""


def test_a_killed_run_keeps_nobody_out(tmp_path: Path) -> None:
    """Guards against a lock that outlives its owner, also through a data worker that was forked from it."""
    command = [sys.executable, "-c", WORKER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        child = int(process.stdout.readline())
        try:
            with pytest.raises(GraphError, match=f"process {process.pid}"), locked(tmp_path):
                pass
            process.kill()
            process.wait()
            os.kill(child, 0)  # still there
            with locked(tmp_path):
                pass
        finally:
            os.kill(child, signal.SIGKILL)


def test_files_hold_no_code(tmp_path: Path) -> None:
    """Guards against a checkpoint that runs something when it is opened."""
    optimiser = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))])
    path = save(tmp_path, at(1, optimiser=optimiser.state_dict(), rng=rng_state()))
    assert {file.suffix for file in path.iterdir()} == {".safetensors", ".json"}
    assert json.loads((path / "state.json").read_text())["optimiser"]["param_groups"][0]["lr"] == 1e-3

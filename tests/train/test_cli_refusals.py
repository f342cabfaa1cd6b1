"""How the command line of the trainer says no: one line, an exit code of its own, no traceback."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.support.training import Ground
from tests.train.test_cli import invoke, refused


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("run", "tinny", "--graph", "GRAPH"), "no recipe 'tinny' (did you mean 'tiny'?); there are "),
        (("run", "none.yaml", "--graph", "GRAPH"), "no recipe 'none.yaml'"),
        (("run", "tiny", "--graph", "nowhere"), "nowhere"),
        (
            ("run", "tiny", "--graph", "GRAPH", "--set", "lora.rnk=3"),
            "tiny.yaml: lora: unknown key 'rnk'; allowed: layers",
        ),
        (("run", "tiny", "--graph", "GRAPH", "--set", "batch"), "--set batch: allowed: field=value"),
        (("run", "tiny", "--graph", "GRAPH", "--set", "cache_gb=1"), "cache_gb: 1.0; allowed only with walks"),
        (("run", "tiny", "--graph", "GRAPH", "--set", "base=sdxl", "--set", "objective=onepic"), "flux_fill only"),
        (("run", "tiny", "--graph", "GRAPH", "--set", "objective=onepic"), "allowed for base flux_fill"),
        (("run", "tiny", "--graph", "GRAPH", "--set", "paths=graph201k"), "graph201k"),
        (
            ("run", "tiny", "--graph", "GRAPH", "--model", "nowhere"),
            "get it with: graphbuild models fetch ",
        ),
        (("validate", "tiny", "--graph", "GRAPH", "--out", "new"), "new: no checkpoint"),
        (("export", "nowhere.safetensors", "--out", "x"), "nowhere.safetensors"),
        (
            ("export", "nowhere", "--out", "x", "--format", "a1111"),
            "unknown LoRA format 'a1111'; known: diffusers",
        ),
        (("run", "tiny", "--graph", "GRAPH", "--out", "/dev/null"), "/dev/null: File exists; give another name"),
        (("sample", "nowhere"), "--rows FOLDER"),
    ],
)
def test_wrong_usage_ends_with_one_line_and_code_2(
    ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], words: str
) -> None:
    """Guards against tracebacks, and against a typo that trains with a default."""
    monkeypatch.chdir(tmp_path)
    refused(invoke(*[str(ground.graph) if word == "GRAPH" else word for word in arguments]), words)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            OSError(28, "No space left on device"),
            "No space left on device; there is no checkpoint",
        ),
        (
            FloatingPointError("step 3: loss nan"),
            "step 3: loss nan; the same command resumes from the checkpoint of step 7",
        ),
    ],
)
def test_what_goes_wrong_on_the_way_ends_with_code_1(
    ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, words: str
) -> None:
    """Guards against a scheduler that takes a full disk for a run that is done, or for a wrong recipe."""

    def fail(*_: Any, **__: Any) -> None:
        raise error

    if "step 7" in words:
        (tmp_path / "checkpoints" / "step-00000007").mkdir(parents=True)
    monkeypatch.setattr("graphbuild_train.trainer.train", fail)
    refused(invoke("run", "tiny", "--graph", ground.graph, "--out", tmp_path), words, code=1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_run_with_its_own_code(
    ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """Guards against a traceback, or a code that a cluster takes for a crash, where it only wanted the machine."""
    before = signal.getsignal(number)
    monkeypatch.setattr("graphbuild_train.trainer.train", lambda *_, **__: os.kill(os.getpid(), number))
    result = invoke("run", "tiny", "--graph", ground.graph, "--out", tmp_path)
    refused(result, "stopped; there is no checkpoint yet", code=128 + number)
    assert signal.getsignal(number) is before

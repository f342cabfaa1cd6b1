"""The same steps, however they are cut up: passes, checkpointing, workers, a graph in a store, compiled blocks."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from graphbuild.store.repair import repair
from graphbuild.store.verify import verify
from graphbuild_train import model_setup as memory
from tests.support.annotators import build, complete, start
from tests.support.object_store import ObjectStore, local_content
from tests.support.training import AVERAGED, Ground, assert_same_steps, recorded, said, state, uneven_passes

ONE_TASK: dict[str, Any] = {"optimiser": AVERAGED, "mix": "step"}
"""Steps that do not depend on `micro_batch`."""


@pytest.fixture(scope="module")
def plain(ground: Ground) -> Path:
    """Five steps of four samples in passes of two."""
    return ground.trained("plain", **ONE_TASK).out


@pytest.fixture(scope="module")
def uneven(ground: Ground) -> Path:
    """The same steps with a mistake."""
    with uneven_passes():
        return ground.trained("uneven", **ONE_TASK).out


@pytest.mark.numeric
@pytest.mark.parametrize("micro_batch", [1, 4])
def test_accumulation_does_not_change_a_step(ground: Ground, plain: Path, uneven: Path, micro_batch: int) -> None:
    """Guards against a mean over tokens or micro batches of different sizes."""
    out = ground.trained(f"micro{micro_batch}", **ONE_TASK, micro_batch=micro_batch).out
    assert_same_steps(out, plain, uneven)


@pytest.mark.numeric
@pytest.mark.parametrize("every", [1, 2])
def test_checkpointing_changes_memory_only(
    ground: Ground, plain: Path, uneven: Path, every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against blocks that are skipped or whose LoRA gets no gradient, and against a switch that does nothing."""
    again: list[str] = []

    def computed(block: Any, *arguments: Any, **options: Any) -> Any:
        again.append(type(block).__name__)
        return checkpoint(block, *arguments, **options)

    monkeypatch.setattr(memory, "checkpoint", computed)
    out = ground.trained(f"spare{every}", **ONE_TASK, checkpointing=every).out
    assert_same_steps(out, plain, uneven)
    assert len(again) == 5 * 2 * (2 if every == 1 else 1)  # two blocks, five steps of two passes


@pytest.mark.numeric
def test_workers_do_not_change_a_step(ground: Ground, plain: Path) -> None:
    """Guards against samples that come in another order from other processes."""
    out = ground.trained("workers", **ONE_TASK, workers=2).out
    assert all(torch.equal(tensor, state(out)[name]) for name, tensor in state(plain).items())


def test_a_graph_in_a_store_trains_the_same(
    ground: Ground, plain: Path, photos: Path, s3: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against a loader that cannot read from a store, or waits for ever in a forked worker. The graph has been
    through what graphs in stores go through: its build was killed, and a part was damaged and repaired."""
    url = s3.new_url()
    process = start(photos, url, ["canny"], shard_size=4, environment=s3.environment)
    while sum(line.startswith("PUT") and "/nodes/" in line for line in s3.requests) < 3 and process.is_alive():
        time.sleep(0.005)
    process.kill()
    process.join()
    assert process.exitcode == -9
    complete(build(photos, url, ["canny"], shard_size=4))
    part = next(name for name in s3.content(url) if name.startswith("nodes/kind=canny/"))
    s3.put(f"{url}/{part}", b"x" * len(s3.content(url)[part]))
    assert part in repair(url).withdrawn
    complete(build(photos, url, ["canny"], shard_size=4))
    assert verify(url, "full").problems == []
    remote, local = (
        {name: data for name, data in files.items() if name.startswith(("items/", "nodes/", "edges/", "heads/"))}
        for files in (s3.content(url), local_content(ground.graph))
    )
    assert remote == local
    monkeypatch.setattr(ground, "graph", url)
    s3.requests.clear()
    out = ground.trained("stored", **ONE_TASK, workers=1).out
    assert recorded(out, "loss") == recorded(plain, "loss")
    reads = [request for request in s3.requests if request.startswith("GET") and "/nodes/" in request]
    assert 0 < len(reads) <= 30  # for 80 cells in 10 parts, by two threads


@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:The .grad attribute of a Tensor:UserWarning")
def test_compiling_does_not_change_a_step(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a compiled block that leaves out its LoRA. It is what torch captures that matters, forwards and
    backwards, so that no C++ is made of it here."""
    compile_block = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self, **o: compile_block(self, backend="aot_eager", **o))
    options = {"steps": 2, "sampler": {"rows": [1.0]}}
    one = ground.trained("eager", **options).out
    with uneven_passes():
        wrong = ground.trained("eager-uneven", **options).out
    two = ground.trained("compiled", **options, compile=True).out
    assert_same_steps(two, one, wrong)


def test_compiling_is_skipped_aloud_without_a_compiler(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a crash, or days at half the speed, on a machine without a compiler."""
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert "compile: skipped, there is no C++ compiler" in said(ground.trained("bare", steps=1, compile=True))

"""What one sample costs in calls: the way from a walk to pixels and words is short."""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType

import skimage.data
from PIL import Image

import graphbuild as gb
from graphbuild.data import GridTasks
from graphbuild.data.sample import GridSample
from graphbuild.tasks.paths import PathSet, TaskPath

PACKAGE = str(Path(gb.__file__).parent)
MOST = 75


def test_a_sample_of_two_cells_takes_few_calls(tmp_path: Path) -> None:
    """Guards against layers that each only pass on: JPEG photographs larger than a cell, all words kept."""
    (tmp_path / "photos").mkdir()
    for name in ("astronaut", "coffee", "chelsea"):
        Image.fromarray(getattr(skimage.data, name)()).save(tmp_path / f"photos/{name}.jpg")
    source = gb.source("folder", path=str(tmp_path / "photos"))
    gb.run(source, ["canny"], out=tmp_path / "graph", executor="inline")
    paths = PathSet(name="draw", paths=(TaskPath(name="draw", cells=("canny", "image"), targets=(1,)),))
    sampler = gb.PathSampler(gb.Graph.open(tmp_path / "graph"), paths, config=gb.SamplerConfig(rows=(1.0,)))
    samples = iter(GridTasks(sampler, resolution=32, stop=60, rank=0, world=1))
    seen = [_calls(lambda: next(samples).load()) for _ in range(60)][20:]  # files are open, modules imported
    assert all(sample.shape == (1, 2) and sample.pixels().any() for sample, _ in seen)
    assert {bool(sample.instruction.task) for sample, _ in seen} == {False, True}
    longest = max((calls for _, calls in seen), key=len)
    assert len(longest) <= MOST, "\n".join(longest)


def _calls(load: object) -> tuple[GridSample, list[str]]:
    """The sample, and the functions of graphbuild that were entered for it; comprehensions are none."""
    entered = []

    def watch(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(PACKAGE) and not code.co_name.endswith("comp>"):
            entered.append(f"{code.co_filename[len(PACKAGE) :]} {code.co_qualname}")

    sys.setprofile(watch)
    try:
        sample = load()  # type: ignore[operator]
    finally:
        sys.setprofile(None)
    return sample, entered

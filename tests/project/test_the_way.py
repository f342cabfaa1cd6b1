"""docs/architecture.md: the way of a photograph, walked."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import FrameType

from torch.utils.data import DataLoader

import graphbuild as gb
from graphbuild.data import GridTasks, collate
from graphbuild.tasks.paths import PathSet, TaskPath

ROOT = Path(__file__).resolve().parents[2]
STEPS = re.findall(r"^\| \d+ \| `([\w/.]+)` `(\w+)` \|", (ROOT / "docs/architecture.md").read_text(), re.MULTILINE)


def test_a_photograph_goes_the_way_that_is_told(photos: Path, tmp_path: Path) -> None:
    """Guards against a page that names files which moved, or steps in another order than they are taken."""
    entered: dict[tuple[str, str], None] = {}

    def watch(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            name = frame.f_code.co_filename
            if name.startswith(str(ROOT)):
                entered.setdefault((str(Path(name).relative_to(ROOT)), frame.f_code.co_name))

    sys.setprofile(watch)
    try:
        gb.run(gb.source("folder", path=str(photos)), ["canny"], out=tmp_path / "graph", executor="inline", limit=4)
        paths = PathSet(name="way", paths=(TaskPath(name="draw", cells=("canny", "image"), targets=(1,)),))
        sampler = gb.PathSampler(gb.Graph.open(tmp_path / "graph"), paths)
        tasks = GridTasks(sampler, resolution=32, stop=1, prefetch=1, threads=1, rank=0, world=1)
        (batch,) = DataLoader(tasks, collate_fn=collate)
    finally:
        sys.setprofile(None)
    assert batch.cells.shape[-2:] == (32, 32)
    assert len(STEPS) == 14 and [step for step in entered if step in STEPS] == STEPS

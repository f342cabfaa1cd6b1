"""docs/architecture.md: the way of a photograph, walked."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import FrameType
from xml.etree import ElementTree

import torch
from torch.utils.data import DataLoader

import graphbuild as gb
from graphbuild.data import GridTasks, collate
from graphbuild.tasks.paths import PathSet, TaskPath
from graphbuild_train.bases import load_base, tiny
from graphbuild_train.objective import objective_of

ROOT = Path(__file__).resolve().parents[2]
SVG = "{http://www.w3.org/2000/svg}"
STEPS = re.findall(r"^\| \d+ \| `([\w/.]+)` `(\w+)` \|", (ROOT / "docs/architecture.md").read_text(), re.MULTILINE)


def test_a_photograph_goes_the_way_that_is_told(photos: Path, tmp_path: Path) -> None:
    """Guards against a page that names files which moved, or steps in another order than they are taken."""
    model, objective = str(tiny.save(tmp_path / "model")), objective_of("visualcloze_fill")
    base = load_base("flux_fill", model, objective, dtype=torch.float32)
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
        latents = base.encode(batch, seed=0)
    finally:
        sys.setprofile(None)
    assert batch.cells.shape[-2:] == (32, 32)
    assert latents.z.shape == (1, latents.view.shape[1], 64)
    assert len(STEPS) == 15 and [step for step in entered if step in STEPS] == STEPS


def test_the_picture_of_the_way_has_its_steps() -> None:
    """Guards against a picture that no longer says what the table below it says."""
    words = ["".join(text.itertext()) for text in ElementTree.parse(ROOT / "docs/architecture.svg").iter(f"{SVG}text")]
    numbers = [int(number) for word in words if word[0].isdigit() for number in word.split(",")]
    assert sorted(numbers) == list(range(1, len(STEPS) + 1))
    files = tuple(word for word in words if word.endswith(".py"))
    assert [file for file, _ in STEPS if not file.endswith(files)] == []

"""How `graph.tar` and `facts.json` beside this file were made, by the code of commit eb12da1 (graph format 1 before
lineages named authors and commits short names of sources):

    PYTHONPATH=<checkout of eb12da1> python make.py OUT_FOLDER

Six small photos through canny, lsd and grabcut; one photo is missing at first, so that a retry makes second revisions.
"""

from __future__ import annotations

import json
import sys
import tarfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from graphbuild.build.bind import _bind_one, source_maker
from graphbuild.build.run import run
from graphbuild.walk import PathSampler
from rich.console import Console

from graphbuild.annotators import BUILTIN, resolve
from graphbuild.annotators.base import needs_of
from graphbuild.contracts import Live
from graphbuild.sources import resolve as resolve_source
from graphbuild.store.graph import Graph


def photo(number: int) -> np.ndarray:
    """48 x 56 pixels: a bright disc with a line on noise."""
    rng = np.random.default_rng(number)
    picture = rng.integers(0, 90, (48, 56, 3), dtype=np.uint8)
    cv2.circle(picture, (28, 24), 12 + number % 4, (60 + 20 * number, 200, 150), -1)
    cv2.line(picture, (2, 2 + number), (52, 40), (255, 255, 255), 1)
    return picture


def make_graph(photos: Path, out: Path) -> None:
    photos.mkdir(parents=True)
    for number in range(5):
        cv2.imwrite(str(photos / f"p{number}.png"), photo(number))
        (photos / f"p{number}.txt").write_text(f"a disc, number {number}")
    (photos / "p5.png").symlink_to("elsewhere.bin")  # a link to nothing: `missing`, which a retry may mend
    source = resolve_source("folder", path=str(photos))
    annotators = ["canny", "lsd", "grabcut"]
    options = {"executor": "inline", "shard_size": 3, "console": Console(quiet=True)}
    assert run(source, annotators, out, **options).failed == 1
    cv2.imwrite(str(photos / "elsewhere.png"), photo(5))
    (photos / "elsewhere.png").rename(photos / "elsewhere.bin")
    assert run(source, annotators, out, retry=True, **options).failed == 0


def walks(out: Path) -> list[list[Any]]:
    sampler = PathSampler(Graph.open(out), "graph200k", seed=0, on_missing="drop")
    return [_fields(sampler.walk(index)) for index in range(20)]


def _fields(walk: Any) -> list[Any]:
    return [walk.index, walk.path.name, walk.rows, walk.variants, walk.columns, walk.holes, walk.seeds]


class _Pinned:
    def identity(self) -> str:
        return "model"


def versions() -> dict[str, str]:
    """Of every annotator and source of ours, from parents `v000000000000` and a model `model`."""
    found = {}
    for name in BUILTIN:
        annotator = resolve(name)
        needs = {getattr(need, "kind", need) for need in needs_of(annotator).values()}
        known = {kind: (Live(annotator="parent", version="v000000000000"), 1) for kind in needs}
        found[name] = _bind_one(annotator, _Pinned(), known).version
    for name in ("folder", "sample", "subjects200k"):
        found[f"source:{name}"] = source_maker(resolve_source(name)).version
    return found


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    make_graph(folder / "photos", folder / "graph")
    facts = {"walks": walks(folder / "graph"), "versions": versions()}
    (folder / "facts.json").write_text(json.dumps(facts, indent=1) + "\n")
    with tarfile.open(folder / "graph.tar", "w:xz") as archive:
        for name in ("photos", "graph"):
            archive.add(folder / name, name)

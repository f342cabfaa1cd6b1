"""Golden walks: pinned, so that no release draws other ones.

`python -m tests.tasks.test_walk_golden` writes them anew.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from graphbuild.tasks.config import HeldOut, SamplerConfig
from graphbuild.tasks.paths import Content, PathSet, TaskPath
from graphbuild.tasks.sampler import PathSampler
from tests.support.graphs import same, write_graph

FILE = Path(__file__).with_name("golden_walks.json")
ITEMS = 40
PATHS = PathSet(
    name="golden",
    type_weights={"two": 2.0},
    paths=(
        TaskPath(name="line", type="one", cells=("canny", "image"), targets=(1,)),
        TaskPath(name="restore", type="one", cells=("blur", "canny", "image"), targets=(2,), weight=3),
        TaskPath(name="style", type="two", cells=("image", "canny", "style_reference", "style_semantic"), targets=(3,)),
        TaskPath(name="joint", type="two", cells=("image", "canny", "depth"), targets=(1, 2)),
        TaskPath(name="edit", type="three", cells=("edit_local", "image"), targets=(1,),
             content=Content(source="edit_text", of="edit_local")),
    ),
)  # fmt: skip
SAMPLERS: dict[str, dict[str, Any]] = {
    "default": {},
    "seed 7": {"seed": 7},
    "group 4": {"path_repeat": 4},
    "paper": {"config": SamplerConfig(mask="paper", rows=(1, 1, 1, 1))},
    "train": {"config": SamplerConfig(split="train", validation=0.3)},
    "held out": {"config": SamplerConfig(held_out=(HeldOut(given=("image",), holes=("canny",)),))},
}
INDICES = (*range(24), 1 << 33, (1 << 40) + 1)


def walks(folder: Path) -> dict[str, list[Any]]:
    """The walks of every sampler, over a graph that has gaps, groups, and references bound to what they made."""
    spine = [{"group": f"scene {item // 2}" if item < 20 else None} for item in range(ITEMS)]
    semantic = same(ITEMS, 3, "image", "style_reference", each=True, shift=3)
    kinds = {
        "canny": {key: made for key, made in same(ITEMS, 1, "image").items() if key[0] % 7},
        "depth": same(ITEMS, 1, "image"),
        "style_reference": {key: made for key, made in same(ITEMS, 6).items() if sum(key) % 5},
        "style_semantic": semantic,
        "edit_text": same(ITEMS, 3, "image"),
        "edit_local": same(ITEMS, 2, "image", "edit_text", each=True, shift=1),
    }
    graph = write_graph(folder / "g", spine, kinds)
    drawn = {}
    for name, options in SAMPLERS.items():
        sampler = PathSampler(graph, PATHS, **options)
        drawn[name] = [_line(sampler.walk(index)) for index in INDICES]
    return drawn


def _line(walk: Any) -> list[Any]:
    values = (walk.index, walk.path.name, walk.rows, walk.variants, walk.columns, walk.holes, walk.seeds)
    return list(json.loads(json.dumps([*values, walk.text_variant])))


def test_golden_walks(tmp_path: Path) -> None:
    """A change here changes the training data of everybody's runs: it needs a new format of walks, not a new file."""
    assert walks(tmp_path) == json.loads(FILE.read_text())


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        found = walks(Path(folder))
    body = ",\n".join(
        f" {json.dumps(name)}: [\n" + ",\n".join(f"  {json.dumps(line)}" for line in lines) + "\n ]"
        for name, lines in found.items()
    )
    FILE.write_text("{\n" + body + "\n}\n")

"""Pipelines: YAML files that name a source and annotators."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from graphbuild.annotators import recorded, resolve
from graphbuild.annotators.base import makes_of, name_of
from graphbuild.annotators.canny import Canny
from graphbuild.annotators.lsd import Lsd
from graphbuild.annotators.mlsd import Mlsd
from graphbuild.cli.options import choose_annotators, live_annotators, live_source
from graphbuild.errors import GraphError
from graphbuild.kinds.registry import KINDS
from graphbuild.pipeline import (
    load_annotators,
    load_pipeline,
    pipeline_file,
    pipeline_names,
)
from graphbuild.store.graph import Graph
from graphbuild.tasks.paths import load
from tests.support.annotators import Child, Styles, build, complete, write_photos

FOLDER = Path(__file__).parents[2] / "pipelines"
SHIPPED = {
    "coco": "coco", "conditions": "folder", "dreambooth": "pairs", "graph200k": "parquet", "magicbrush": "parquet",
    "multiview": "scenes", "omniedit": "parquet", "sample": "sample", "subjects200k": "subjects200k",
    "folder": "folder", "viton_hd": "pairs", "id_sets": "pairs", "photodoodle": "manifest", "hypersim": "pairs",
    "dreambench": "manifest", "nyu_depth": "pairs",
}  # fmt: skip
"""Pipeline -> its source."""

OWN = """
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from graphbuild.annotators.base import Annotator, Derived, Request


@dataclass(frozen=True, kw_only=True)
class Grey(Annotator):
    makes: ClassVar[tuple[str, ...]] = ("depth",)
    level: int = 7

    def annotate(self, batch: Sequence[Request], model: Any) -> list[Derived]:
        return [Derived({"depth": np.full(r.inputs["image"].array().shape[:2], self.level, np.uint8)}) for r in batch]


class NotOne:
    pass
"""


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An annotator in a module of the user's own."""
    name = f"own_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return path


def test_every_shipped_pipeline_loads(photos: Path) -> None:
    """A pipeline that came with the library must not need a fix before its first use."""
    assert set(pipeline_names()) == {file.stem for file in FOLDER.glob("*.yaml")} == set(SHIPPED)
    for name, source in SHIPPED.items():
        pipeline = load_pipeline(name, **({"path": str(photos)} if source == "folder" else {}))
        assert pipeline.source.name == source and (pipeline.annotators or len(pipeline.source.kinds()) > 1)
        assert pipeline.annotators == load_annotators(name), "the same wherever the items are"
        assert pipeline_file(name).read_text().startswith("# "), "says what it is"


def test_shipped_pipelines_make_what_they_promise() -> None:
    """The twelve conditions of Graph200K with captions, and every kind that its task list reads or words."""
    made = {name: {k.name for a in load_annotators(name) for k in makes_of(a).values()} for name in SHIPPED}
    read = {kind for path in load("graph200k").paths for kind in path.kinds} | {"foreground_mask"}
    stored = {name: kind.family for name, kind in KINDS.items() if not kind.is_computed}
    conditions = {name for name in read & set(stored) if stored[name] == "condition"}
    assert made["conditions"] == {"caption", *conditions}
    words = {name for name, family in stored.items() if family == "text"}
    assert made["subjects200k"] == (read & set(stored)) - {"image", "reference"} | words


@pytest.mark.parametrize("name", ["sample", "folder"])
def test_the_first_pipelines_need_no_weights(name: str) -> None:
    """The demo and a folder alone work offline: none of their annotators loads a model, and they serve paths."""
    annotators = load_annotators(name)
    assert all(annotator.identity() is None for annotator in annotators)
    assert all(annotator.resources.gpus == 0 for annotator in annotators)
    made = {"image", "canny", "lines", "foreground_mask"}
    assert any(set(path.kinds) <= made for path in load("graph200k").paths)


def test_parameters_reach_the_annotator(tmp_path: Path, photos: Path) -> None:
    """Plain names, `use` with fields, and a location given on the command line."""
    path = write(tmp_path, "source: folder\nannotators: [lsd, {use: canny, low: 50}]\n")
    pipeline = load_pipeline(path, path=str(photos))
    assert pipeline.annotators == (Lsd(), Canny(low=50.0))
    assert len(pipeline.source.entries()) == 18


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("source: sample\nanotators: [canny]\n", ["anotators", "annotators"]),
        ("annotators: [canny]\n", ["source"]),
        ("source: sample\nannotators: canny\n", ["annotators"]),
        ("source: sample\nannotators: [{low: 50}]\n", ["low", "use: <name>"]),
        ("source: sample\nannotators: [{use: canny, lo: 50}]\n", ["'lo'", "low", "high", "canny"]),
        ("source: sample\nannotators: [{use: canny, low: much}]\n", ["canny", "low", "much"]),
        ("source: sample\nannotators: [cany]\n", ["cany", "did you mean 'canny'"]),
        ("source: {use: folder, root: x}\n", ["folder", "root", "path"]),
        ("source: smaple\n", ["smaple", "sample", "folder", "subjects200k"]),
        ("source: [sample\n", ["line"]),
        ("", ["source"]),
        ("source: sample\npaths: graph200k\n", ["paths", "source, annotators"]),
    ],
)
def test_mistakes_name_file_key_and_what_is_valid(tmp_path: Path, text: str, parts: list[str]) -> None:
    """A typo must never be ignored, and the message must be enough to mend it."""
    path = write(tmp_path, text)
    with pytest.raises(GraphError) as caught:
        load_pipeline(path)
    assert all(part in str(caught.value) for part in [str(path), *parts]), caught.value


def test_an_unknown_pipeline_lists_the_known(tmp_path: Path) -> None:
    """By name and by file."""
    for name in ("smaple", str(tmp_path / "none.yaml")):
        with pytest.raises(GraphError, match=r"no pipeline .*sample, subjects200k"):
            load_pipeline(name)


def test_a_key_written_twice_is_refused(tmp_path: Path) -> None:
    """YAML keeps the last of two equal keys: half of the annotators would be left out without a word."""
    path = write(tmp_path, "source: sample\nannotators: [canny]\nannotators: [lsd]\n")
    with pytest.raises(GraphError, match="annotators"):
        load_pipeline(path)


def test_annotators_of_ones_own(tmp_path: Path, photos: Path, own_module: str) -> None:
    """`module:Class` works from a pipeline, and again when it is named; a graph alone makes nobody import it."""
    uses = f"{{use: '{own_module}:Grey', level: 9}}, 'tests.support.annotators:TwoKinds'"
    path = write(tmp_path, f"source: folder\nannotators: [{uses}]\n")
    pipeline = load_pipeline(path, path=str(photos))
    assert [name_of(annotator) for annotator in pipeline.annotators] == ["grey", "two_kinds"]
    out = tmp_path / "g"
    complete(build(photos, out, pipeline.annotators, limit=3))
    assert (Graph.open(out).read(0, "depth").values() == 9).all()
    both = [f"{own_module}:Grey", "tests.support.annotators:TwoKinds"]
    assert choose_annotators([*both, "lsd"], out) == [*pipeline.annotators, Lsd()]
    with pytest.raises(ValueError, match=rf"{own_module}:Grey.*not part of graphbuild"):
        choose_annotators(["grey"], out)
    assert choose_annotators(["lsd"], out) == [Lsd()], "what was not named is not looked at"
    found, refused = live_annotators(out)
    assert found == [] and len(refused) == 2


@pytest.mark.parametrize("what", ["nothing:Grey", "{module}:None", "{module}:NotOne"])
def test_a_wrong_module_says_what_it_could_not_load(own_module: str, what: str) -> None:
    """A missing module, a missing class, and a class that is no annotator."""
    use = what.format(module=own_module)
    with pytest.raises(ValueError, match=use):
        resolve(use)


def chosen(names: list[str], out: Path) -> list[Any]:
    return choose_annotators(names, out)


def test_bare_names_keep_what_the_graph_has(tmp_path: Path, photos: Path) -> None:
    """`--annotators canny` on more photos must not start the whole graph again with the defaults."""
    out = tmp_path / "g"
    assert chosen(["canny", "lines"], out) == [Canny(), Mlsd()]
    mine = [Canny(low=50.0), Styles(variants=2), Canny(of="style_content", high=150.0)]
    complete(build(photos, out, mine, limit=2))
    assert chosen(["canny"], out) == mine[:1]
    assert chosen(["tests.support.annotators:Styles", "style_content.canny"], out) == mine[1:]
    assert chosen(["lsd", "canny"], out) == [Lsd(), mine[0]]
    assert sorted(map(repr, live_annotators(out)[0])) == sorted(map(repr, [mine[0], mine[2]]))


def test_bare_names_prefer_the_annotator_of_the_plain_kind(tmp_path: Path, photos: Path) -> None:
    """Two instances of one class: its name means the one for the image, in whatever order they were built."""
    out = tmp_path / "g"
    mine = [Styles(variants=2), Canny(of="style_content", high=150.0), Canny(low=50.0)]
    complete(build(photos, out, mine, limit=2))
    assert chosen(["canny"], out) == [Canny(low=50.0)]


def test_names_that_mean_one_annotator_are_one(tmp_path: Path) -> None:
    """`mlsd,lines` names one annotator twice; running it twice would be refused as two producers of one kind."""
    assert chosen(["mlsd", "lines", "mlsd"], tmp_path / "g") == [Mlsd()]


def test_the_source_is_found_again(tmp_path: Path, photos: Path) -> None:
    """Guards against `retry` reading a folder because a graph from somebody else names it; a given path wins."""
    out = tmp_path / "g"
    complete(build(photos, out, [Canny(), Child()], limit=2))
    assert live_source(out) is None
    source = live_source(out, trust=True)
    assert source is not None and len(source.entries()) == 18
    moved = live_source(out, str(write_photos(tmp_path / "moved", range(3))), trust=True)
    assert moved is not None and len(moved.entries()) == 3


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("evil_module:Canny", {}),
        ("vlm_caption", {"server": "http://somewhere/v1", "api_key_env": "SECRET"}),
        ("birefnet", {"trust_remote_code": True}),
        ("style_picker", {"folder": "/"}),
        ("depth_anything", {"model": "{here}"}),
    ],
)
def test_nothing_that_a_graph_says_is_trusted(name: str, config: dict[str, Any], tmp_path: Path) -> None:
    """Somebody's graph must not make `retry` import their code, ask their server with your key, or load a folder."""
    (tmp_path / "model.safetensors").write_bytes(b"")
    config = {key: value.format(here=tmp_path) if isinstance(value, str) else value for key, value in config.items()}
    with pytest.raises(ValueError, match="--pipeline FILE"):
        recorded(name, config)


def test_paths_of_the_first_release_mean_ours() -> None:
    """Graphs recorded `graphbuild.<module>:<Class>` before modules moved."""
    assert recorded("graphbuild.annotators.canny:Canny", {"low": 50.0}) == Canny(low=50.0)

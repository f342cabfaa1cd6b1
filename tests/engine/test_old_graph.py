"""A graph made before lineages named authors: it opens, verifies, resumes, grows, and draws what it drew."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from graphbuild.annotators import resolve
from graphbuild.annotators.base import Annotator, Derived, Request, needs_of
from graphbuild.annotators.canny import Canny
from graphbuild.contracts import Live
from graphbuild.engine.plan import make_plan
from graphbuild.engine.versions import bind, source_producer
from graphbuild.hashing import version_of
from graphbuild.sources import resolve as resolve_source
from graphbuild.store.graph import Graph
from graphbuild.store.locations import files_at
from graphbuild.store.verify import verify
from graphbuild.tasks.sampler import PathSampler
from tests.support.annotators import build, complete, tree

OLD = Path(__file__).parent / "old_graph"
SINCE = {
    **{"sam2": "v3b7171c56021", "open_world": "v929667c7f28d"},
    **{"vlm_caption": "v1c9c3a30860a", "vlm_edits": "vdd24931de23b", "vlm_background": "v897cf9d8cbf6"},
    "grabcut": "v0be0df925b18",
    **{"instant_style": "v72085ced19ea", "redux_style": "v8c6a95353c84"},
    **{"fill_edit": "vc783cbba696a", "depth_edit": "vbfac9f5c25b5"},
}
"""Versions of annotators that make other nodes since: colours drawn for each item; no masks that are empty
or all but empty; styles and edits at the picture's own size; words and boxes by a model's own settings, edits as
instructions, too."""
FACTS: dict[str, Any] = json.loads((OLD / "facts.json").read_text())


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """The folder with `graph` and `photos`."""
    with tarfile.open(OLD / "graph.tar") as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # not before Python 3.11.4
        archive.extractall(tmp_path)
    return tmp_path


def test_an_old_graph_is_sound_and_finished(old: Path) -> None:
    """Guards against a change of names or hashes that makes people's graphs start over."""
    before = tree(old / "graph", ".")
    assert verify(old / "graph", "full").problems == []
    source = resolve_source("folder", path=str(old / "photos"))
    plan = make_plan(files_at(old / "graph"), source, [resolve(name) for name in ("canny", "lsd")])
    assert plan.units == () and plan.replaces() == {}
    report = complete(build(old / "photos", old / "graph", ["canny", "lsd"]))
    assert report.annotators == {} and tree(old / "graph", ".") == before


def test_an_old_graph_draws_the_same_walks(old: Path) -> None:
    sampler = PathSampler(Graph.open(old / "graph"), "graph200k", seed=0, on_missing="drop")
    walks = [sampler.walk(index) for index in range(len(FACTS["walks"]))]
    drawn = [[w.index, w.path.name, w.rows, w.variants, w.columns, w.holes, w.seeds] for w in walks]
    assert json.loads(json.dumps(drawn)) == FACTS["walks"]


def test_an_old_graph_grows(old: Path) -> None:
    """Guards against new units that cannot be bound to the commits of before; `grabcut` has a new version since."""
    before = tree(old / "graph", "items", "nodes", "edges", "lineage")
    old_mask = Graph.open(old / "graph").read(0, "foreground_mask")
    report = complete(build(old / "photos", old / "graph", ["canny", "lsd", "grabcut", "source_caption"]))
    assert set(report.annotators) == {"source_caption", "grabcut"}
    grown = Graph.open(old / "graph")
    assert grown.kinds() == dict.fromkeys(("image", "canny", "lines", "foreground_mask"), 6) | {"caption": 5}
    assert grown.read(0, "foreground_mask", version=old_mask.version).bytes == old_mask.bytes
    assert grown.live("foreground_mask").version != old_mask.version
    assert before.items() <= tree(old / "graph").items() and verify(old / "graph", "full").problems == []


@pytest.mark.parametrize("name", [name for name in FACTS["versions"] if not name.startswith("source:")])
def test_annotators_of_ours_keep_their_versions(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a lineage of ours that hashes to something else, which computes every graph anew."""
    annotator = resolve(name)
    monkeypatch.setattr(type(annotator), "identity", lambda self: "model")
    monkeypatch.setattr(type(annotator), "checkpoints", lambda self: {})
    head = {kind: Live(annotator="parent", version="v000000000000") for kind in _needs(annotator)}
    ((producer, _),) = bind([annotator], [], head, lambda kind, live: 1)
    assert producer.version == SINCE.get(name, FACTS["versions"][name])


@pytest.mark.parametrize("name", ["folder", "sample", "subjects200k"])
def test_sources_of_ours_keep_their_versions(name: str) -> None:
    producer = source_producer(resolve_source(name))
    assert (producer.version, producer.use) == (FACTS["versions"][f"source:{name}"], name)


def _needs(annotator: Annotator) -> set[str]:
    return {need if isinstance(need, str) else need.kind for need in needs_of(annotator).values()}


def test_a_class_of_the_same_name_is_another_version(photos: Path, tmp_path: Path) -> None:
    """Guards against somebody else's `Canny` that gets "nothing to do" and the pixels of ours."""
    complete(build(photos, tmp_path / "g", ["canny"], limit=3))
    ours = Graph.open(tmp_path / "g").live("canny")
    theirs = dataclass(frozen=True, kw_only=True)(type("Canny", (Canny,), {"__module__": __name__}))
    plan = make_plan(files_at(tmp_path / "g"), None, [theirs()])
    assert plan.units[0].why == f"annotator changed: author None -> {__name__}"
    complete(build(photos, tmp_path / "g", [theirs()], limit=3))
    assert Graph.open(tmp_path / "g").live("canny") != ours


@dataclass(frozen=True, kw_only=True)
class Own(Canny):
    """An annotator of one's own in a graph that was made before versions named authors."""

    makes: ClassVar[tuple[str, ...]] = ("hed",)

    def annotate(self, batch: Sequence[Request], model: Any) -> list[Derived]:
        return [Derived({"hed": request.inputs["image"].array()[:, :, 0].copy()}) for request in batch]


def test_own_annotators_in_a_graph_from_before_authors(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against weeks of somebody's annotations that are computed again for a new field in the lineage."""
    with monkeypatch.context() as before:
        before.setattr("graphbuild.engine.versions.author_of", lambda cls: None)
        complete(build(photos, tmp_path / "g", [Own()], limit=3))
    assert make_plan(files_at(tmp_path / "g"), None, [Own()]).units == ()
    lineage = Graph.open(tmp_path / "g").commits("hed")[0].document.lineage
    assert lineage.author is None and version_of(lineage) == Graph.open(tmp_path / "g").live("hed").version


def test_a_kind_of_ours_is_not_declared_otherwise(photos: Path, tmp_path: Path) -> None:
    """Guards against `canny` stored as JPEG because a class declares it so, while everything else reads our kind."""
    from graphbuild.kinds.registry import Kind

    kind = Kind(name="hed", family="condition", codec="png", description="something else")
    own = dataclass(frozen=True, kw_only=True)(type("Odd", (Canny,), {"makes": (kind,), "__module__": __name__}))
    with pytest.raises(ValueError, match=r"Odd declares the kind 'hed' otherwise than graphbuild\.KINDS"):
        build(photos, tmp_path / "g", [own()], limit=3)

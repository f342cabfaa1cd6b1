"""Walks: pure functions of (snapshot, configuration, seed, index), drawn with the declared chances."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path
from typing import Any, ClassVar

import pytest

from graphbuild.annotators.base import Annotator, Derived, Request, Skip, parameter
from graphbuild.annotators.canny import Canny
from graphbuild.errors import GraphError
from graphbuild.store.graph import Graph
from graphbuild.tasks.config import ROWS, HeldOut, SamplerConfig
from graphbuild.tasks.paths import PathSet, TaskPath
from graphbuild.tasks.sampler import PathSampler
from tests.support.annotators import Styles, build, complete, write_photos

SKETCH = TaskPath(name="sketch", type="sketching", cells=("image", "canny"), targets=(1,))
COLOUR = TaskPath(name="colour", type="painting", cells=("canny", "image"), targets=(1,), weight=3)
LINES = TaskPath(name="lines", type="painting", cells=("lines", "canny", "image"), targets=(2,))
JOINT = TaskPath(name="joint", type="joint", cells=("image", "canny", "lines"), targets=(1, 2))
PATHS = PathSet(name="four", paths=(SKETCH, COLOUR, LINES, JOINT), type_weights={"sketching": 2.0})
HED = TaskPath(name="soft", type="painting", cells=("canny", "hed", "image"), targets=(2,), weight=9)


@pytest.fixture(scope="module")
def graph(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Graph:
    out = tmp_path_factory.mktemp("walk") / "g"
    annotators = ["canny", "lsd", Styles(), Canny(of="style_content")]
    complete(build(photos, out, annotators, limit=9, shard_size=4))
    return Graph.open(out)


def walks(graph: Graph, paths: PathSet = PATHS, count: int = 200, **options: Any) -> list[Any]:
    sampler = PathSampler(graph, paths, **options)
    return [sampler.walk(index) for index in range(count)]


def p_value(counts: Mapping[Any, int], expected: Mapping[Any, float]) -> float:
    """Pearson's chi-square test of counts against probabilities; an outcome that cannot happen gives 0."""
    from scipy import stats

    if set(counts) - set(expected):
        return 0.0
    total = sum(counts.values())
    keys = list(expected)
    shares = sum(expected.values())
    return float(
        stats.chisquare([counts.get(key, 0) for key in keys], [expected[k] / shares * total for k in keys]).pvalue
    )


# ---- purity ----------------------------------------------------------------------------------------------------


def test_walks_do_not_depend_on_order_or_on_the_sampler_object(graph: Graph) -> None:
    """A resumed or differently ordered worker would otherwise train on other tasks."""
    straight = walks(graph)
    order = random.Random(1).sample(range(200), 200)
    sampler = PathSampler(Graph.open(graph.url), PATHS)
    shuffled = {index: sampler.walk(index) for index in order}
    assert [shuffled[index] for index in range(200)] == straight
    assert [walk.index for walk in straight] == list(range(200))


def test_another_seed_draws_other_walks(graph: Graph) -> None:
    """A seed that is ignored, or only shifts the sequence."""
    first, second = walks(graph, seed=1), walks(graph, seed=2)
    ids = [[(walk.path.name, walk.rows, walk.holes, walk.seeds) for walk in drawn] for drawn in (first, second)]
    assert not set(ids[0]) & set(ids[1])
    assert sum(a.rows == b.rows for a, b in zip(first, second, strict=True)) < 100


def test_numpy_indices_are_indices(graph: Graph) -> None:
    """Indices that come out of a numpy permutation must not overflow or draw something else."""
    import numpy as np

    sampler = PathSampler(graph, PATHS)
    assert [sampler.walk(index) for index in np.arange(50)] == [sampler.walk(index) for index in range(50)]


def test_far_indices_are_drawn_as_well(graph: Graph) -> None:
    """Counters beyond 2**32 must not repeat the first walks."""
    sampler = PathSampler(graph, PATHS)
    near = {sampler.walk(index).seeds for index in range(100)}
    assert not near & {sampler.walk((1 << 40) + index).seeds for index in range(100)}


def test_a_pinned_snapshot_keeps_its_walks(photos: Path, tmp_path: Path) -> None:
    """Photos and annotators that come later must not move the walks of a training run that pinned its snapshot."""
    folder, out = tmp_path / "photos", tmp_path / "g"
    folder.mkdir()
    for file in sorted(photos.iterdir())[:6]:
        shutil.copy2(file, folder)
    digest = complete(build(folder, out, ["canny"], shard_size=4)).snapshot
    paths = PathSet(name="pair", paths=(SKETCH, COLOUR, LINES))
    before = walks(Graph.open(out), paths, on_missing="drop")
    write_photos(folder, range(30, 34))
    complete(build(folder, out, [Canny(low=20.0), "lsd"]))
    pinned, live = Graph.open(out, snapshot=digest), Graph.open(out)
    assert (pinned.num_items, live.num_items) == (6, 10)
    assert walks(pinned, paths, on_missing="drop") == before
    assert max(max(walk.rows) for walk in walks(live, paths)) > 5
    task = PathSampler(pinned, paths, on_missing="drop").task(0, 32)
    versions = {node.version for row in task.rows for node in row}
    assert versions == {pinned.live("image").version, pinned.live("canny").version}
    assert pinned.live("canny") != live.live("canny")


def test_an_unrelated_kind_changes_no_walk(photos: Path, tmp_path: Path) -> None:
    """A new annotator in the graph must not move walks over paths that do not use it."""
    out, paths = tmp_path / "g", PathSet(name="pair", paths=(SKETCH, COLOUR))
    complete(build(photos, out, ["canny"], limit=6))
    before = walks(Graph.open(out), paths)
    complete(build(photos, out, ["canny", "lsd", "grabcut"], limit=6))
    assert walks(Graph.open(out), paths) == before


# ---- shape of a walk -------------------------------------------------------------------------------------------


def test_rows_columns_and_holes_are_valid(graph: Graph) -> None:
    """Rows are distinct items, columns a permutation with the last cell last, holes shown columns."""
    for walk in walks(graph, count=2000):
        assert 1 <= len(walk.rows) <= 3 and len(set(walk.rows)) == len(walk.rows)
        assert all(0 <= item < graph.num_items for item in walk.rows)
        assert sorted(walk.columns) == list(range(len(walk.path.cells))) and walk.columns[-1] == len(walk.columns) - 1
        assert walk.holes and set(walk.holes) <= set(range(len(walk.columns)))
        assert list(walk.holes) == sorted(set(walk.holes))
        assert len(walk.seeds) == len(walk.variants) == len(walk.rows)
        assert {walk.kinds[column] for column in walk.targets} == {walk.path.kinds[at] for at in walk.path.targets}
        if len(walk.path.targets) > 1:
            assert walk.holes == walk.targets


def test_repeats_of_a_path_share_its_geometry(graph: Graph) -> None:
    """A batch of mixed grid sizes could not be stacked; its items still have to differ."""
    drawn = walks(graph, path_repeat=8)
    repeats = [drawn[start : start + 8] for start in range(0, 200, 8)]
    assert all(len({(walk.path.name, len(walk.rows)) for walk in repeat}) == 1 for repeat in repeats)
    assert len({(repeat[0].path.name, len(repeat[0].rows)) for repeat in repeats}) > 5
    assert all(len({walk.rows for walk in repeat}) > 1 for repeat in repeats)


def test_repeats_of_a_geometry_mix_its_paths(graph: Graph) -> None:
    """A forward pass needs one geometry, not one task; and no task may be drawn less often for it."""
    sampler = PathSampler(graph, PATHS, path_repeat=8, config=SamplerConfig(repeat="geometry"))
    drawn = [*sampler.walks(0, 24000)]
    assert drawn[77] == sampler.walk(77)
    repeats = [drawn[start : start + 8] for start in range(0, len(drawn), 8)]
    assert all(len({(len(walk.rows), len(walk.columns)) for walk in repeat}) == 1 for repeat in repeats)
    assert sum(len({walk.path.name for walk in repeat}) > 1 for repeat in repeats) > len(repeats) / 2
    for place in (0, 5):
        counts = Counter(repeat[place].path.name for repeat in repeats)
        assert p_value(counts, sampler.probabilities()) > 1e-4


def test_few_items_mean_few_rows(photos: Path, tmp_path: Path) -> None:
    """Two items cannot fill three distinct rows; they are drawn with the chances that remain."""
    build(photos, tmp_path / "g", ["canny"], limit=2)
    drawn = walks(Graph.open(tmp_path / "g"), PathSet(name="p", paths=(SKETCH,)), count=3000)
    assert p_value(Counter(len(walk.rows) for walk in drawn), {1: 0.3, 2: 0.4}) > 1e-4


def test_variants_of_a_row_belong_together(graph: Graph) -> None:
    """A style and the edges made from another style would teach nothing."""
    path = TaskPath(name="style", cells=("style_content.canny", "style_content", "image"), targets=(1,))
    sampler = PathSampler(graph, PathSet(name="styles", paths=(path,)))
    seen: Counter[int] = Counter()
    for index in range(300):
        walk = sampler.walk(index)
        drawn = [dict(zip(walk.kinds, row, strict=True)) for row in walk.variants]
        seen.update(row["style_content"] for row in drawn)
        assert all(row["style_content.canny"] == row["style_content"] and row["image"] == 0 for row in drawn)
        if index < 10:
            rows = sampler.task(index, 16).rows
            assert [{node.kind: node.variant for node in row} for row in rows] == drawn
    assert p_value(seen, dict.fromkeys(range(3), 1.0)) > 1e-4


@dataclass(frozen=True, kw_only=True)
class Half(Annotator):
    """Two variants, of which only one exists: the first of `style_content`."""

    makes: ClassVar[tuple[str, ...]] = ("style_content",)
    there: ClassVar[int] = 0
    variants: int = parameter(2, output=False)

    def annotate(self, batch: Sequence[Request], model: Any) -> list[Derived | Skip]:
        kind = str(self.makes[0])
        return [
            Derived({kind: r.inputs["image"].array().copy()}) if r.variant == self.there else Skip("none")
            for r in batch
        ]


@dataclass(frozen=True, kw_only=True)
class OtherHalf(Half):
    """The second of `style_semantic`."""

    makes: ClassVar[tuple[str, ...]] = ("style_semantic",)
    there: ClassVar[int] = 1


def test_only_variants_that_exist_are_drawn(photos: Path, tmp_path: Path) -> None:
    """A drawn variant that was skipped would end in a missing node."""
    build(photos, tmp_path / "g", [Half(), OtherHalf(), Canny(of="style_content")], limit=3)
    graph = Graph.open(tmp_path / "g")
    second = TaskPath(name="second", cells=("image", "style_semantic"), targets=(1,))
    one = PathSampler(graph, PathSet(name="one", paths=(second,)))
    assert {row for index in range(50) for row in one.walk(index, columns=(0, 1)).variants} == {(0, 1)}
    both = TaskPath(name="both", cells=("style_content", "style_semantic"), targets=(1,))
    two = PathSampler(graph, PathSet(name="two", paths=(both,)))  # neither was made from the other
    assert {row for index in range(50) for row in two.walk(index).variants} == {(0, 1)}


# ---- what can be served ----------------------------------------------------------------------------------------


def test_an_unservable_path_is_refused_with_what_it_lacks(graph: Graph) -> None:
    """The message must say which kind is missing, or the user has to search the graph by hand."""
    with pytest.raises(GraphError, match="serves 1 of the 2 paths") as caught:
        PathSampler(graph, PathSet(name="two", paths=(SKETCH, HED)))
    message = str(caught.value)
    assert "'two': no hed (1 path: soft). Run the missing annotators" in message
    assert "on_missing" in message and "sketch" not in message


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (SamplerConfig(where={"key": "nobody"}), 'no item is left by where {"key":"nobody"} (134 paths: canny-'),
        (SamplerConfig(rows=(0.0,) * 12 + (1.0,)), "too few items for rows [0.0, "),
        (SamplerConfig(held_out=(HeldOut(given=("canny",), holes=("image",)),)), "no reference (58 paths: "),
    ],
)  # fmt: skip
def test_the_commonest_reasons_are_told(graph: Graph, config: SamplerConfig, said: str) -> None:
    """Guards against the counts of all paths, from which nobody sees that one condition left nothing."""
    with pytest.raises(GraphError) as caught:
        PathSampler(graph, "graph200k", config=config)
    message = str(caught.value)
    assert said in message and "{'" not in message and len(message) < 700


def test_nothing_servable_is_refused_even_with_drop(graph: Graph) -> None:
    """An empty list of paths would end in an obscure error at the first walk."""
    with pytest.raises(GraphError, match="serves 0 of the 1 paths"):
        PathSampler(graph, PathSet(name="none", paths=(HED,)), on_missing="drop")


def test_what_is_switched_off_need_not_be_served(graph: Graph) -> None:
    """Guards against asking for an annotator of a path that would never be drawn, and against listing it as drawn."""
    off, soft = replace(HED, name="off", weight=0.0), replace(HED, type="soft")
    paths = PathSet(name="some", paths=(SKETCH, off, soft, COLOUR), type_weights={"soft": 0.0, "painting": 0.0})
    sampler = PathSampler(graph, paths)
    assert sampler.paths == (SKETCH,) and sampler.probabilities() == {"sketch": 1.0}
    lacking = PathSet(name="some", paths=(soft, COLOUR), type_weights={"painting": 0.0})
    with pytest.raises(GraphError, match="serves 0 of the 2 paths"):
        PathSampler(graph, lacking, on_missing="drop")


def test_drop_keeps_the_weight_of_the_type(graph: Graph) -> None:
    """A dropped path gives its chance to its own type, not to the others."""
    paths = PathSet(name="some", paths=(SKETCH, COLOUR, HED))
    sampler = PathSampler(graph, paths, on_missing="drop")
    assert [path.name for path in sampler.paths] == ["sketch", "colour"]
    names = Counter(sampler.walk(index).path.name for index in range(4000))
    assert p_value(names, {"sketch": 0.5, "colour": 0.5}) > 1e-4


def test_coverage_counts_items(graph: Graph) -> None:
    """The counts that a user reads must be those of the graph."""
    sampler = PathSampler(graph, PathSet(name="some", paths=(SKETCH, HED)), on_missing="drop")
    assert sampler.coverage() == {
        "sketch": {"canny": 9, "image": 9, "all": 9},
        "soft": {"canny": 9, "hed": 0, "image": 9, "all": 0},
    }


# ---- chances ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many(graph: Graph) -> list[Any]:
    return walks(graph, count=20_000, seed=5)


def test_paths_are_drawn_by_type_then_weight(many: list[Any]) -> None:
    """Types 2 : 1 : 1, and inside painting 3 : 1."""
    expected = {"sketch": 0.5, "colour": 0.1875, "lines": 0.0625, "joint": 0.25}
    assert p_value(Counter(walk.path.name for walk in many), expected) > 1e-4


def test_rows_have_the_declared_chances(many: list[Any]) -> None:
    """One, two or three rows, whatever the path."""
    for name in ("sketch", "colour"):
        counts = Counter(len(walk.rows) for walk in many if walk.path.name == name)
        assert p_value(counts, dict(enumerate(ROWS, 1))) > 1e-4


def test_items_are_uniform_in_every_row(many: list[Any]) -> None:
    """No item is preferred as query or as context, and pairs are as likely as each other."""
    wide = [walk for walk in many if len(walk.rows) == 3]
    for row in range(3):
        assert p_value(Counter(walk.rows[row] for walk in wide), dict.fromkeys(range(9), 1.0)) > 1e-4
    pairs = Counter(walk.rows[:2] for walk in wide)
    assert p_value(pairs, dict.fromkeys(permutations(range(9), 2), 1.0)) > 1e-4


def test_holes_are_the_target_or_any_column(many: list[Any]) -> None:
    """Half the masks are the target, half any column: the reverse task, as in the released code."""
    two = Counter(walk.holes for walk in many if walk.path.name == "colour")
    assert p_value(two, {(1,): 0.75, (0,): 0.25}) > 1e-4
    three = Counter(walk.holes for walk in many if walk.path.name == "lines")
    assert p_value(three, {(2,): 2 / 3, (0,): 1 / 6, (1,): 1 / 6}) > 1e-4


def test_conditions_are_shuffled(many: list[Any]) -> None:
    """A condition that always comes first would be learnt by its place."""
    assert p_value(Counter(w.columns for w in many if w.path.name == "lines"), {(0, 1, 2): 1, (1, 0, 2): 1}) > 1e-4

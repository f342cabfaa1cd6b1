"""Masks, held-out tasks, filters, pinned parts, frozen walks: every switch does what it says."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphbuild.errors import GraphError
from graphbuild.store.graph import Graph
from graphbuild.tasks.config import HeldOut, SamplerConfig
from graphbuild.tasks.instruction import Keep
from graphbuild.tasks.masks import masks
from graphbuild.tasks.paths import PathSet, TaskPath
from graphbuild.tasks.sampler import PathSampler
from graphbuild.tasks.walk import Walk
from tests.support.graphs import same, write_graph
from tests.tasks.test_walk import p_value

COUNT = 12
LINE = TaskPath(name="line", cells=("canny", "image"), targets=(1,))
BACK = TaskPath(name="back", cells=("image", "canny"), targets=(1,))
THREE = TaskPath(name="three", cells=("canny", "depth", "image"), targets=(2,))
JOINT = TaskPath(name="joint", cells=("image", "canny", "depth"), targets=(1, 2))
EDIT = TaskPath(name="edit", cells=("image", "edit_local"), targets=(1,))
PATHS = PathSet(name="five", paths=(LINE, BACK, THREE, JOINT, EDIT))


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    kinds = {kind: same(COUNT, 1, "image") for kind in ("canny", "depth")}
    return write_graph(
        tmp_path_factory.mktemp("switches") / "g", [{}] * COUNT, {**kinds, "edit_local": same(COUNT, 3, "image")}
    )


def sampler(graph: Graph, *paths: TaskPath, seed: int = 0, path_repeat: int = 1, **switches: Any) -> PathSampler:
    listed = PathSet(name="some", paths=paths) if paths else PATHS
    return PathSampler(graph, listed, seed=seed, path_repeat=path_repeat, config=SamplerConfig(**switches))


# ---- many walks at once ----------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1 << 50), st.integers(0, 20), st.integers(0, 5), st.sampled_from([1, 2, 8]))
def test_walks_are_the_walks(graph: Graph, start: int, n: int, seed: int, path_repeat: int) -> None:
    """`walks(start, n)` is `walk` for each, by any access; a resumed run may use either."""
    drawn = sampler(graph, seed=seed, path_repeat=path_repeat)
    many = drawn.walks(start, n)
    assert len(many) == n and list(many) == [drawn.walk(start + number) for number in range(n)]
    assert [many[number] for number in range(n)] == list(many) and list(many[1:3]) == list(many)[1:3]


@settings(deadline=None, max_examples=20)
@given(st.sampled_from([1, 2, 7]), st.integers(0, 1000), st.integers(1, 60))
def test_workers_by_index_draw_the_same_walks(graph: Graph, workers: int, start: int, n: int) -> None:
    """However many workers share the indices, together they draw what one draws."""
    alone = list(sampler(graph).walks(start, n))
    shared = {}
    for worker in range(workers):
        own = pickle.loads(pickle.dumps(sampler(graph)))
        shared |= {index: own.walk(index) for index in range(start + worker, start + n, workers)}
    assert [shared[index] for index in range(start, start + n)] == alone


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 9), st.integers(0, 10_000))
def test_repeats_share_path_and_rows_and_no_more(graph: Graph, repeat: int, number: int) -> None:
    """Path and number of rows depend on i // path_repeat alone; items do on i."""
    walks = sampler(graph, path_repeat=repeat).walks(number * repeat, repeat)
    single = sampler(graph, path_repeat=repeat).walk(number * repeat)
    assert {(walk.path.name, len(walk.rows)) for walk in walks} == {(single.path.name, len(single.rows))}
    assert len({walk.seeds for walk in walks}) == repeat


# ---- the key ---------------------------------------------------------------------------------------------------


def test_switches_at_their_default_leave_no_trace(graph: Graph) -> None:
    """A switch that a later release adds must not change the walks of those who do not use it."""
    spelt = SamplerConfig(mask="code", rows=(0.3, 0.4, 0.3), keep=Keep(), layout="pipeline", where={}, split=None)
    assert spelt.changed() == {}
    assert list(PathSampler(graph, PATHS, config=spelt).walks(0, 99)) == list(PathSampler(graph, PATHS).walks(0, 99))


@pytest.mark.parametrize(
    "switches",
    [
        {"mask": "paper"},
        {"rows": (1.0, 1.0)},
        {"layout": "random"},
        {"weights": "coverage"},
        {"where": {"item_ix": {">=": 0}}},
        {"held_out": [HeldOut(given=("hed",))]},
        {"keep": Keep(task=1.0)},
    ],
    ids=str,
)
def test_a_switch_that_is_set_draws_other_walks(graph: Graph, switches: dict[str, Any]) -> None:
    assert [walk.seeds for walk in sampler(graph, **switches).walks(0, 9)] != [
        walk.seeds for walk in sampler(graph).walks(0, 9)
    ]


@pytest.mark.parametrize(
    ("switches", "message"),
    [
        ({"mask": "both"}, "allowed: code, paper"),
        ({"weights": "even"}, "allowed: listed, coverage"),
        ({"split": "test"}, "allowed: train, validation or null"),
        ({"rows": ()}, "positive sum"),
        ({"rows": (1.0, -1.0)}, "a list, each a number >= 0"),
        ({"rows": (float("inf"),)}, "a list, each a number >= 0"),
        ({"validation": 2}, r"allowed: a number 0\.\.1"),
        ({"where": {"item_ix": {"in": {1, 2}}}}, r"where: item_ix: \{'in': \{1, 2\}\}; allowed: text"),
    ],
)
def test_a_wrong_switch_is_refused(switches: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamplerConfig(**switches)


# ---- weights ---------------------------------------------------------------------------------------------------


def test_weights_can_follow_what_a_graph_has(graph: Graph) -> None:
    """Guards against the few items of a rare path being seen more often than others, and against weights of the list
    or of its types being forgotten."""
    rare = replace(THREE, name="rare", where={"item_ix": {"<": 4}}, weight=2.0, type="drawing")
    listed = PathSet(name="some", paths=(replace(LINE, type="drawing"), rare, BACK), type_weights={"drawing": 3.0})
    expected = {"listed": {"line": 1 / 4, "rare": 2 / 4, "back": 1 / 4},
                "coverage": {"line": 3 / 4 * 12 / 20, "rare": 3 / 4 * 8 / 20, "back": 1 / 4}}  # fmt: skip
    for weights, chances in expected.items():
        drawn = PathSampler(graph, listed, config=SamplerConfig(weights=weights))  # type: ignore[arg-type]
        assert sum(drawn.probabilities().values()) == pytest.approx(1)
        walks = drawn.walks(0, 20_000)
        assert p_value(Counter(walk.path.name for walk in walks), chances) > 1e-4, weights
        assert {path.name: path for path in drawn.paths} == {path.name: path for path in listed.paths}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path_repeat": 0}, "path_repeat: 0; allowed: 1 to"),
        ({"path_repeat": 2.5}, r"path_repeat: 2\.5; allowed: an integer"),
        ({"seed": "a"}, "seed: 'a'; allowed: an integer"),
    ],
    ids=str,
)
def test_numbers_that_are_none_are_refused(graph: Graph, options: dict[str, Any], message: str) -> None:
    """Guards against a `path_repeat` of 0, with which every walk of a training run has one path."""
    with pytest.raises(ValueError, match=message):
        PathSampler(graph, PATHS, **options)


def test_indices_are_those_that_can_be_stored(graph: Graph) -> None:
    """Guards against an overflow that names no argument, and files that cannot hold the index."""
    drawn = sampler(graph)
    assert drawn.walk(2**63 - 2).index == 2**63 - 2 and len(drawn.walks(2**63 - 2, 1)) == 1
    for ask in (
        lambda: drawn.walk(-1),
        lambda: drawn.walk(2**63),
        lambda: drawn.walks(-3, 5),
        lambda: drawn.walks(0, -1),
    ):
        with pytest.raises(ValueError, match=r"(index|start|n): -?\d+; allowed: 0 to"):
            ask()


def test_numbers_of_numpy_are_numbers(graph: Graph) -> None:
    """Guards against arguments that only look like integers to Python."""
    drawn = PathSampler(graph, PATHS, seed=np.int64(3), path_repeat=np.int64(2))  # type: ignore[arg-type]
    plain = PathSampler(graph, PATHS, seed=3, path_repeat=2)
    pins: dict[str, Any] = {"items": np.array([1, 2]), "hole": np.int64(0)}
    assert drawn.walk(7, **pins) == plain.walk(7, items=[1, 2], hole=0)


# ---- masks -----------------------------------------------------------------------------------------------------


def holes_of(walks: Any) -> Counter[frozenset[int]]:
    return Counter(frozenset(walk.columns[hole] for hole in walk.holes) for walk in walks)


@pytest.mark.parametrize("mask", ["code", "paper"])
@pytest.mark.parametrize("path", [LINE, THREE, JOINT], ids=lambda path: path.name)
def test_masks_have_their_chances(graph: Graph, mask: Any, path: TaskPath) -> None:
    """Drawn holes against the declared chances, for both readings of VisualCloze."""
    expected = {
        ("code", "line"): {(1,): 0.75, (0,): 0.25},
        ("code", "three"): {(2,): 2 / 3, (0,): 1 / 6, (1,): 1 / 6},
        ("paper", "line"): {(1,): 0.5, (0, 1): 0.5},
        ("paper", "three"): {(2,): 0.5, (0, 2): 0.25, (1, 2): 0.25},
    }.get((mask, path.name), {(1, 2): 1.0})
    assert {tuple(sorted(cells)): chance for cells, chance in masks(path, SamplerConfig(mask=mask))} == pytest.approx(
        expected
    )
    counts = holes_of(sampler(graph, path, mask=mask).walks(0, 20_000))
    assert set(counts) == {frozenset(cells) for cells in expected}
    if len(expected) > 1:
        assert p_value(counts, {frozenset(cells): chance for cells, chance in expected.items()}) > 1e-4


def test_rows_of_ones_own(graph: Graph) -> None:
    """Five rows are as good as three."""
    counts = Counter(len(walk.rows) for walk in sampler(graph, rows=(0, 1, 0, 0, 3)).walks(0, 4000))
    assert p_value(counts, {2: 0.25, 5: 0.75}) > 1e-4


# ---- held-out tasks --------------------------------------------------------------------------------------------

KINDS = ("image", "canny", "depth", "edit_local")
HELD = st.builds(
    HeldOut,
    given=st.lists(st.sampled_from(KINDS), max_size=2).map(tuple),
    holes=st.lists(st.sampled_from(KINDS), min_size=1, max_size=2).map(tuple),
)


def shows(walk: Walk, task: HeldOut) -> bool:
    holes = {walk.kinds[hole] for hole in walk.holes}
    given_kinds = {kind for column, kind in enumerate(walk.kinds) if column not in walk.holes}
    return set(task.given) <= given_kinds and set(task.holes) <= holes


@settings(deadline=None, max_examples=40)
@given(st.lists(HELD, min_size=1, max_size=2), st.sampled_from(["code", "paper"]))
def test_a_held_out_task_never_appears(graph: Graph, held_out: list[HeldOut], mask: Any) -> None:
    """Neither by its own path nor by a mask that reverses another: every (path, hole) pair, and drawn walks."""
    config = SamplerConfig(mask=mask, held_out=tuple(held_out))
    for path in PATHS.paths:
        for cells, chance in masks(path, config):
            walk = Walk(0, path, (0,), ((0,) * len(path.cells),), tuple(range(len(path.cells))), tuple(cells), (0,))
            assert chance > 0 and not any(shows(walk, task) for task in held_out)
    if not any(masks(path, config) for path in PATHS.paths):
        with pytest.raises(GraphError, match="held out"):
            PathSampler(graph, PATHS, config=config)
        return
    drawn = PathSampler(graph, PATHS, config=config)
    assert not any(shows(walk, task) for walk in drawn.walks(0, 300) for task in held_out)


def test_holding_out_leaves_the_rest_as_likely_as_it_was(graph: Graph) -> None:
    """The held-out mask's chance goes to the others; the path that is the task itself is not drawn."""
    held_out = [HeldOut(given=("image",), holes=("canny",))]
    drawn = sampler(graph, held_out=held_out)
    assert [path.name for path in drawn.paths] == ["line", "three", "edit"]
    walks = list(drawn.walks(0, 20_000))
    assert holes_of(walk for walk in walks if walk.path is LINE).keys() == {frozenset({1})}
    three = holes_of(walk for walk in walks if walk.path is THREE)
    assert p_value(three, {frozenset({2}): 4 / 5, frozenset({1}): 1 / 5}) > 1e-4


def test_one_kind_and_one_task_need_no_brackets(graph: Graph) -> None:
    """Guards against a word that is taken for a list of letters."""
    task = HeldOut(given="canny", holes="image")  # type: ignore[arg-type]
    assert task == HeldOut(given=("canny",), holes=("image",))
    assert SamplerConfig(held_out=task) == SamplerConfig(held_out=(task,))  # type: ignore[arg-type]


def test_holding_out_nothing_or_unknown_kinds_is_refused(graph: Graph) -> None:
    with pytest.raises(ValueError, match="at least one"):
        HeldOut()
    with pytest.raises(ValueError, match="unknown kind 'cany'"):
        sampler(graph, held_out=(HeldOut(holes=("cany",)),))


# ---- pinned parts ----------------------------------------------------------------------------------------------


def test_pinned_parts_are_as_asked_and_the_others_as_drawn(graph: Graph) -> None:
    """Looking at one walk with another hole must not change its items, nor the other way round."""
    drawn = sampler(graph)
    for index in range(40):
        walk = drawn.walk(index)
        assert drawn.walk(index, path=walk.path.name, items=walk.rows, columns=walk.columns, hole=walk.holes) == walk
        assert drawn.walk(index, hole=0) == replace(walk, holes=(0,))
        other = drawn.walk(index, items=(3, 1, 4, 2, 0))
        assert other.rows == (3, 1, 4, 2, 0) and (other.path, other.columns) == (walk.path, walk.columns)
        assert other.seeds[: len(walk.seeds)] == walk.seeds
        edit = drawn.walk(index, path="edit", variant=2, columns=(1, 0))
        assert edit.kinds == ("edit_local", "image") and set(edit.variants) == {(2, 0)}


def test_turned_columns_keep_their_holes(graph: Graph) -> None:
    drawn = sampler(graph, THREE)
    for index in range(40):
        walk, turned = drawn.walk(index), drawn.walk(index, columns=(2, 0, 1))
        assert holes_of([walk]) == holes_of([turned]) and turned.columns == (2, 0, 1)


@pytest.mark.parametrize(
    ("pins", "message"),
    [
        ({"path": "lime"}, "allowed: line, back"),
        ({"items": (1, 1)}, "different items"),
        ({"items": (99,)}, r"items: \[99\] do not serve"),
        ({"path": "edit", "variant": 7}, "variant: 7: item"),
        ({"path": "line", "variant": 7}, "variant: 7: path 'line' has no variants; allowed: 0"),
        ({"items": ("a",)}, "items: 'a'; allowed: an integer"),
        ({"hole": 9}, r"allowed: columns 0\.\."),
        ({"hole": ()}, "at least one"),
        ({"columns": (0, 0)}, "each of"),
    ],
)
def test_a_pin_that_does_not_exist_is_refused(graph: Graph, pins: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sampler(graph).walk(0, **pins)


def test_a_held_out_path_can_be_pinned(graph: Graph) -> None:
    """It is held out to be evaluated."""
    drawn = sampler(graph, held_out=[HeldOut(given=("image",), holes=("canny",))])
    walk = drawn.walk(0, path="back")
    assert walk.path is BACK and walk.holes == walk.targets


# ---- frozen walks ----------------------------------------------------------------------------------------------


def test_frozen_walks_are_written_with_their_digest(graph: Graph, tmp_path: Path) -> None:
    """An evaluation must be able to say what exactly it was run on."""
    frozen = sampler(graph, mask="paper").frozen(20)
    assert frozen == sampler(graph, mask="paper").frozen(20) and frozen.digest != sampler(graph).frozen(20).digest
    frozen.write(tmp_path / "eval.jsonl")
    header, *records = [json.loads(line) for line in (tmp_path / "eval.jsonl").read_text().splitlines()]
    assert header["digest"] == frozen.digest and header["snapshot"] == graph.digest and header["mask"] == "paper"
    walks = list(sampler(graph, mask="paper").walks(0, 20))
    assert [(r["index"], r["path"], r["rows"], r["holes"]) for r in records] == [
        (walk.index, walk.path.name, list(walk.rows), list(walk.holes)) for walk in walks
    ]

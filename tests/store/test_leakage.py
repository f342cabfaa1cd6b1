"""Leakage groups and the sides of a split."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from graphbuild.cli.text import tasks_lines
from graphbuild.errors import GraphError
from graphbuild.store import leakage as groups
from graphbuild.store.conditions import matching
from graphbuild.tasks.config import SamplerConfig
from graphbuild.tasks.explain import served_tasks
from graphbuild.tasks.paths import PathSet, TaskPath
from graphbuild.tasks.sampler import PathSampler
from tests.support.graphs import same, write_graph

PAIRS = st.lists(st.tuples(st.integers(0, 29), st.integers(0, 29)).filter(lambda pair: pair[0] != pair[1]), max_size=40)


def table(**columns: list[Any]) -> pa.Table:
    count = len(next(iter(columns.values())))
    types = {"group": pa.string(), "sha256": pa.string(), "phash": pa.int64()}
    values = {name: pa.array(columns.get(name, [None] * count), dtype) for name, dtype in types.items()}
    ids = pa.array([f"{item:032x}" for item in range(count)])
    return pa.table({"item_ix": pa.array(range(count), pa.int64()), "item_id": ids, **values})


def as_pairs(pairs: list[tuple[int, int]]) -> NDArray[np.int64]:
    return np.array(pairs, np.int64).reshape(-1, 2)


def components_by_hand(count: int, pairs: list[tuple[int, int]]) -> list[int]:
    label = list(range(count))
    for _ in range(count):
        for one, other in pairs:
            label[one] = label[other] = min(label[one], label[other])
    return label


@settings(deadline=None)
@given(PAIRS)
def test_components_are_connected_components(pairs: list[tuple[int, int]]) -> None:
    """A group that is missed lets two views of one thing onto both sides of a split."""
    assert groups.components(30, as_pairs(pairs)).tolist() == components_by_hand(30, pairs)


def test_equal_groups_hashes_and_near_pictures_are_linked() -> None:
    """Each of the three columns links; a missing value links nothing."""
    links = groups.links_of(
        table(
            group=["a", None, "a", None, None, None],
            sha256=["1", "2", "3", "2", None, None],
            phash=[None, None, 0b1111, None, 0b0001, 0b11111111],
        )
    )
    assert groups.components(6, links).tolist() == [0, 1, 0, 1, 0, 5]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(-(1 << 63), (1 << 63) - 1), min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_near_pictures_are_found_by_bands_as_by_comparing_all(hashes: list[int], rng: Any) -> None:
    """Banding must not lose a pair, in whichever bits the hashes differ."""
    for value in list(hashes):
        flipped = value
        for bit in rng.sample(range(63), rng.randint(0, 5)):
            flipped ^= 1 << bit
        hashes.append(flipped)
    pairs = [
        (one, other)
        for one in range(len(hashes))
        for other in range(one)
        if ((hashes[one] ^ hashes[other]) & ((1 << 64) - 1)).bit_count() <= groups.NEAR
    ]
    links = groups.links_of(table(phash=hashes))
    assert groups.components(len(hashes), links).tolist() == components_by_hand(len(hashes), pairs)


@settings(deadline=None)
@given(PAIRS, st.integers(1, 29), st.sampled_from([0.05, 0.3, 0.5]))
def test_later_items_never_move_earlier_ones(pairs: list[tuple[int, int]], count: int, validation: float) -> None:
    """An item that changes sides as the graph grows was trained on and is then validated on."""
    items = table(group=[None] * 30)
    early = [pair for pair in pairs if max(pair) < count]
    before = groups.sides(count, as_pairs(early), items.slice(0, count), validation)
    after = groups.sides(30, as_pairs(pairs), items, validation)
    assert before.tolist() == after[:count].tolist()


@settings(deadline=None)
@given(PAIRS, st.sampled_from([0.05, 0.3, 0.5]))
def test_no_link_crosses_a_split(pairs: list[tuple[int, int]], validation: float) -> None:
    """Whatever is linked is on one side, or one of the two is a bridge and not drawn; a bridge joins two sides."""
    side = groups.sides(30, as_pairs(pairs), table(group=[None] * 30), validation)
    assert all(side[one] == side[other] or groups.BRIDGE in (side[one], side[other]) for one, other in pairs)
    if len(set(side) - {groups.BRIDGE}) == 1:
        assert groups.BRIDGE not in side


def test_the_validation_share_is_as_asked() -> None:
    side = groups.sides(20_000, as_pairs([]), table(group=[None] * 20_000), 0.1)
    assert abs((side == groups.VALIDATION).mean() - 0.1) < 0.01


def test_two_hundred_thousand_pictures_are_grouped() -> None:
    """Guards against comparing all pairs, which would not end within hours, nor fit into memory."""
    rng = np.random.default_rng(0)
    hashes = rng.integers(-(1 << 62), 1 << 62, 200_000)
    hashes[100_000:100_500] = hashes[:500] ^ 0b10001
    links = groups.links_of(table(phash=hashes.tolist()))
    found = groups.components(200_000, links)
    assert (found[100_000:100_500] == found[:500]).all() and len(np.unique(found)) == 199_500


# ---- in a sampler ----------------------------------------------------------------------------------------------

SELF = PathSet(name="self", paths=(TaskPath(name="restore", cells=("blur", "image"), targets=(1,)),))


def spine(count: int, **columns: Any) -> list[dict[str, Any]]:
    return [{name: value(item) for name, value in columns.items()} for item in range(count)]


def rows_of(sampler: PathSampler, count: int = 400) -> Iterator[tuple[int, ...]]:
    return (walk.rows for walk in sampler.walks(0, count))


def test_no_walk_has_two_items_of_a_group(tmp_path: Path) -> None:
    """The left and the right picture of a stereo pair in one grid: the answer would stand in the context."""
    graph = write_graph(tmp_path / "g", spine(12, group=lambda item: f"scene {item // 3}"))
    seen = set()
    for rows in rows_of(PathSampler(graph, SELF)):
        assert len({item // 3 for item in rows}) == len(rows)
        seen |= set(rows)
    assert seen == set(range(12))


def test_one_group_fills_one_row(tmp_path: Path) -> None:
    """Two items of one group cannot fill two rows."""
    graph = write_graph(tmp_path / "g", spine(2, group=lambda item: "one"))
    assert {len(rows) for rows in rows_of(PathSampler(graph, SELF))} == {1}


def test_nodes_made_across_items_link_them(tmp_path: Path) -> None:
    """A picture made from another item's picture shows that one, too."""
    crossed = {(item, 0): [(item, "image", 0), (item ^ 1, "image", 0)] for item in range(6)}
    kinds = {"edit_local": crossed, "edit_local.canny": same(6, 1, "edit_local")}
    graph = write_graph(tmp_path / "g", spine(6), kinds)
    for kind in kinds:  # itself, or what it was made from
        edit = PathSet(name="edit", paths=(TaskPath(name="edit", cells=("image", kind), targets=(1,)),))
        assert all(len({item // 2 for item in rows}) == len(rows) for rows in rows_of(PathSampler(graph, edit)))
    unrelated = PathSampler(graph, SELF)
    assert any(len({item // 2 for item in rows}) < len(rows) for rows in rows_of(unrelated))


def test_sides_share_no_item_and_bridges_are_counted(tmp_path: Path) -> None:
    """Every item is on one side, but for the one that joins two."""
    config = {side: SamplerConfig(split=side, validation=0.5) for side in ("train", "validation")}  # type: ignore[arg-type]
    plain = write_graph(tmp_path / "a", spine(12))
    sides = {side: set().union(*rows_of(PathSampler(plain, SELF, config=of))) for side, of in config.items()}
    assert not sides["train"] & sides["validation"] and sides["train"] | sides["validation"] == set(range(12))
    one, other = min(sides["train"] - {11}), min(sides["validation"] - {11})
    marks = {one: {"group": "x"}, other: {"sha256": "y"}, 11: {"group": "x", "sha256": "y"}}
    graph = write_graph(tmp_path / "b", [marks.get(item, {}) for item in range(12)])
    for side, of in config.items():
        sampler = PathSampler(graph, SELF, config=of)
        served = served_tasks(graph, "graph200k", of)
        assert list(tasks_lines(served.rows, served.bridging))[-1].startswith("1 item in no task: linked to")
        assert set().union(*rows_of(sampler)) == sides[side] - {11}
    assert 11 in set().union(*rows_of(PathSampler(graph, SELF)))


def test_a_side_does_not_depend_on_the_list(tmp_path: Path) -> None:
    """Guards against validating an edit on what another list, that does not know of the edit, trained on."""
    crossed = {(item, 0): [(item, "image", 0), (item ^ 1, "image", 0)] for item in range(60)}
    graph = write_graph(tmp_path / "g", spine(60), {"edit_local": crossed})
    edit = PathSet(name="edit", paths=(TaskPath(name="edit", cells=("image", "edit_local"), targets=(1,)),))
    drawn = {}
    for side in ("train", "validation"):
        config = SamplerConfig(split=side, validation=0.4)  # type: ignore[arg-type]
        for name, listed in (("plain", SELF), ("edit", edit)):
            drawn[side, name] = set().union(*rows_of(PathSampler(graph, listed, config=config)))
    assert drawn["train", "plain"] and drawn["validation", "edit"]
    assert not drawn["train", "plain"] & drawn["validation", "edit"]
    assert not drawn["train", "edit"] & drawn["validation", "plain"]


# ---- conditions on items ---------------------------------------------------------------------------------------


def meta(score: int | None) -> str | None:
    return None if score is None else f'{{"quality": {{"consistency": {score}}}}}'


def test_where_keeps_the_items_that_meet_it(tmp_path: Path) -> None:
    """Columns and places in meta; a path's condition and the sampler's both hold; a missing value meets nothing."""
    rows = [{"licence": "cc0" if item % 2 else "mit", "meta": meta(item if item < 8 else None)} for item in range(10)]
    graph = write_graph(tmp_path / "g", rows)
    good = TaskPath(
        name="good", cells=("blur", "image"), targets=(1,), where={"quality.consistency": {">=": 3, "<": 7}}
    )
    sampler = PathSampler(graph, PathSet(name="good", paths=(good,)), config=SamplerConfig(where={"licence": ["cc0"]}))
    assert set().union(*rows_of(sampler)) == {3, 5}
    assert sampler.coverage() == {"good": {"image": 10, "allowed": 2, "all": 2}}


def test_conditions_of_a_kind(tmp_path: Path) -> None:
    """Guards against poor pairs that train: `reference` only of items whose pair is rated 3 or better; other tasks of
    the other items stay."""
    scores = [None, 1, 2, 3, 4, 5]
    pairs = [{"meta": json.dumps({"quality_assessment": score and {"objectConsistency": score}})} for score in scores]
    kinds = {"reference": same(6, 1), "canny": same(6, 1)}
    for name in ("graph200k", "graph200k_released"):
        sampler = PathSampler(write_graph(tmp_path / name, pairs, kinds), name, on_missing="drop")
        drawn: dict[bool, set[int]] = {False: set(), True: set()}
        for walk in sampler.walks(0, 400):
            drawn["reference" in walk.kinds].update(walk.rows)
        assert drawn == {True: {3, 4, 5}, False: set(range(6))}
        assert sampler.coverage()["reference-to-image"] == {"image": 6, "reference": 6, "allowed": 3, "all": 3}
    unrated = write_graph(tmp_path / "unrated", [{} for _ in scores], kinds)
    assert not any("reference" in path.kinds for path in PathSampler(unrated, on_missing="drop").paths)
    with pytest.raises(GraphError, match=r"no item is left by the conditions of reference .*split, rows, kinds"):
        PathSampler(unrated)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"quality.size": 1}, "in meta: quality"),
        ({"quality.consistency": {"=>": 1}}, "unknown operator '=>'"),
        ({"quality.consistency": {">": "3"}}, "cannot be compared"),
        ({"licence": {"in": 3}}, "cannot be compared"),
        ({"licence": {"in": "cc0, mit"}}, "in: 'cc0, mit'; allowed: a list"),
        ({"licence": {}}, "licence: no operator; allowed: =="),
    ],
)
def test_a_wrong_condition_is_refused(where: dict[str, Any], message: str) -> None:
    """A condition that is misspelt and met by all, or by none, would change the training data in silence."""
    items = pa.table({"item_ix": [0], "licence": ["cc0"], "meta": [meta(4)]})
    with pytest.raises(GraphError, match=message):
        matching(items, where)


def test_a_condition_on_no_items() -> None:
    """Guards against a graph without items that answers with an error of numpy."""
    items = pa.table(
        {"item_ix": pa.array([], pa.int64()), "licence": pa.array([], pa.string()), "meta": pa.array([], pa.string())}
    )
    assert matching(items, {"licence": "cc0"}).tolist() == []

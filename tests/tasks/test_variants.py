"""Variants of a row that were made from each other stay together; the others are free."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from graphbuild.errors import GraphError
from graphbuild.store.graph import Graph
from graphbuild.store.heads import change_head
from graphbuild.store.workspace import Workspace
from graphbuild.tasks.paths import Content, PathSet, TaskPath
from graphbuild.tasks.sampler import PathSampler
from graphbuild.tasks.walk import Walk
from tests.support.graphs import Made, same, write_graph
from tests.tasks.test_walk import p_value

COUNT = 6
REFERENCES = same(COUNT, 6)
STYLES: dict[str, Made] = {
    "style_reference": REFERENCES,
    "style_content": same(COUNT, 3, "image", "style_reference", each=True),
    "style_semantic": same(COUNT, 3, "image", "style_reference", each=True, shift=3),
}


def drawn(graph: Graph, *cells: str, count: int = 600, **options: Any) -> list[Walk]:
    path = TaskPath(name="p", cells=cells, targets=(len(cells) - 1,), **options)
    return list(PathSampler(graph, PathSet(name="one", paths=(path,))).walks(0, count))


def by_cell(walk: Walk) -> list[dict[str, int]]:
    cells = [walk.path.cells[cell] for cell in walk.columns]
    return [dict(zip(cells, row, strict=True)) for row in walk.variants]


def pairs(walks: list[Walk], *cells: str) -> Counter[tuple[int, ...]]:
    return Counter(tuple(row[cell] for cell in cells) for walk in walks for row in by_cell(walk))


def spine(count: int = COUNT) -> list[dict[str, Any]]:
    return [{} for _ in range(count)]


def test_a_reference_follows_the_picture_made_with_it(tmp_path: Path) -> None:
    """Variant k of style_semantic was made with reference 3 + k: any other reference shows another style."""
    graph = write_graph(tmp_path / "g", spine(), STYLES)
    content = pairs(drawn(graph, "image", "style_reference", "style_content"),
                    "style_reference", "style_content")  # fmt: skip
    assert set(content) == {(k, k) for k in range(3)} and p_value(content, dict.fromkeys(content, 1.0)) > 1e-4
    semantic = pairs(drawn(graph, "style_reference", "style_semantic"), "style_reference", "style_semantic")
    assert set(semantic) == {(3 + k, k) for k in range(3)}


def test_a_kind_behind_another_is_bound_as_well(tmp_path: Path) -> None:
    """Edges of a stylised picture belong to its reference, though they were made from the picture."""
    kinds = {**STYLES, "style_semantic.canny": same(COUNT, 3, "style_semantic", each=True)}
    graph = write_graph(tmp_path / "g", spine(), kinds)
    found = pairs(drawn(graph, "style_reference", "style_semantic.canny"), "style_reference", "style_semantic.canny")
    assert set(found) == {(3 + k, k) for k in range(3)}


def test_what_comes_from_one_node_shares_it_though_it_is_not_shown(tmp_path: Path) -> None:
    """Edges and soft edges of two different stylised pictures would teach nothing."""
    kinds = {
        "style_content": same(COUNT, 3, "image"),
        "style_content.canny": same(COUNT, 3, "style_content", each=True),
        "style_content.hed": same(COUNT, 3, "style_content", each=True),
    }
    walks = drawn(write_graph(tmp_path / "g", spine(), kinds), "style_content.canny", "style_content.hed")
    assert set(pairs(walks, "style_content.canny", "style_content.hed")) == {(k, k) for k in range(3)}


def test_what_is_not_bound_is_drawn_independently(tmp_path: Path) -> None:
    """An edit and a style of one picture have nothing to do with each other: all pairs come."""
    kinds = {**STYLES, "edit_local": same(COUNT, 4, "image")}
    walks = drawn(write_graph(tmp_path / "g", spine(), kinds), "edit_local", "style_reference", "style_content")
    found = pairs(walks, "edit_local", "style_content")
    assert p_value(found, {(a, b): 1.0 for a in range(4) for b in range(3)}) > 1e-4


def test_only_choices_that_exist_are_drawn_and_each_as_often(tmp_path: Path) -> None:
    """Items lack other variants: the rest is uniform, and an item with no consistent choice does not serve."""
    references = {key: [] for key in REFERENCES if key not in {(0, 1), (2, 0), (2, 1), (2, 2)}}
    content = {key: made for key, made in STYLES["style_content"].items() if key != (1, 0)}
    kinds = {"style_reference": references, "style_content": content}
    walks = drawn(write_graph(tmp_path / "g", spine(), kinds), "style_reference", "style_content", count=3000)
    of_item: dict[int, Counter[int]] = {item: Counter() for item in range(COUNT)}
    for walk in walks:
        for item, row in zip(walk.rows, by_cell(walk), strict=True):
            assert row["style_reference"] == row["style_content"]
            of_item[item][row["style_content"]] += 1
    assert not of_item[2]
    for item, allowed in ((0, {0, 2}), (1, {1, 2}), (3, {0, 1, 2})):
        assert p_value(of_item[item], dict.fromkeys(allowed, 1.0)) > 1e-4


def test_two_roles_of_a_kind_show_two_variants(tmp_path: Path) -> None:
    """`edit_local:a` and `edit_local:b` are two edits; one shown twice would teach copying."""
    kinds = {"edit_local": same(COUNT, 3, "image"), "edit_local.canny": same(COUNT, 3, "edit_local", each=True)}
    graph = write_graph(tmp_path / "g", spine(), kinds)
    found = pairs(drawn(graph, "edit_local:a", "edit_local:b"), "edit_local:a", "edit_local:b")
    assert p_value(found, {(a, b): 1.0 for a in range(3) for b in range(3) if a != b}) > 1e-4
    named = pairs(drawn(graph, "edit_local:a", "edit_local.canny:b", "edit_local:b"),
                  "edit_local:a", "edit_local.canny:b", "edit_local:b")  # fmt: skip
    assert {(b, a != b) for a, b, _ in named} == {(b, True) for b in range(3)}
    assert all(canny == b for _, canny, b in named)
    with pytest.raises(GraphError, match="serves 0"):
        drawn(graph, "image:a", "image:b")


def test_a_computed_cell_takes_the_first_mask_and_what_belongs_to_it(tmp_path: Path) -> None:
    """`foreground` is cut with mask 0: the style that the mask was made from is style 0."""
    kinds = {
        "style_content": same(COUNT, 3, "image"),
        "foreground_mask": same(COUNT, 3, "style_content", each=True),
    }
    walks = drawn(write_graph(tmp_path / "g", spine(), kinds), "style_content", "foreground")
    assert set(pairs(walks, "style_content", "foreground")) == {(0, 0)}


def test_the_text_of_the_edit_that_is_shown(tmp_path: Path) -> None:
    """The words must speak of the edit in the query row, not of another one."""
    kinds = {
        "edit_text": same(COUNT, 4, "image"),
        "edit_local": same(COUNT, 3, "image", "edit_text", each=True, shift=1),
    }
    content = Content(source="edit_text", of="edit_local")
    walks = drawn(write_graph(tmp_path / "g", spine(), kinds), "image", "edit_local", content=content)
    assert all(walk.text_variant == by_cell(walk)[-1]["edit_local"] + 1 for walk in walks)
    assert {walk.text_variant for walk in walks} == {1, 2, 3}


def test_the_instruction_of_the_edit_that_is_shown(tmp_path: Path) -> None:
    """One annotator writes caption and instruction, the edit is made from the caption: both are of the same edit."""
    kinds = {
        "edit_text": same(COUNT, 4, "image"),
        "edit_local": same(COUNT, 3, "image", "edit_text", each=True, shift=1),
    }
    graph = write_graph(tmp_path / "g", spine(), kinds)
    change_head(
        graph.fs, Workspace.create(graph.fs, "test"), lambda head: {**head, "edit_instruction": head["edit_text"]}
    )
    content = Content(source="edit_instruction", of="edit_local")
    walks = drawn(Graph.open(tmp_path / "g"), "image", "edit_local", content=content)
    assert all(walk.text_variant == by_cell(walk)[-1]["edit_local"] + 1 for walk in walks)
    assert {walk.text_variant for walk in walks} == {1, 2, 3}


def test_too_many_choices_are_refused(tmp_path: Path) -> None:
    graph = write_graph(tmp_path / "g", spine(2), {"edit_local": same(2, 17)})
    with pytest.raises(GraphError, match="4913 ways"):
        drawn(graph, "edit_local:a", "edit_local:b", "edit_local:c")

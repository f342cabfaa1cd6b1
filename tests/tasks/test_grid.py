"""Grid tasks: pictures, words and the record of where every cell came from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphbuild.contracts import WalkDocument
from graphbuild.store.graph import Graph
from graphbuild.tasks import sheet
from graphbuild.tasks.config import SamplerConfig
from graphbuild.tasks.export import write_tasks
from graphbuild.tasks.grid import GridTask
from graphbuild.tasks.instruction import KEEP_ALL
from graphbuild.tasks.paths import Content, PathSet, TaskPath
from graphbuild.tasks.sampler import PathSampler
from tests.support.annotators import Halves, Styles, build, complete
from tests.support.cells import centre_square

ROOT = Path(__file__).parents[2]
CAPTION = Content(source="caption", of="image")
TO_IMAGE = TaskPath(name="to-image", cells=("canny", "foreground", "image"), targets=(2,), content=CAPTION)
TO_CANNY = TaskPath(name="to-canny", cells=("image", "canny"), targets=(1,), content=CAPTION)
JOINT = TaskPath(name="joint", cells=("blur", "lines", "image"), targets=(1, 2))
TURNED = TaskPath(name="turned", cells=("rotate_90", "gaussian_noise", "style_content", "image"), targets=(3,))
EVERY_WORD = SamplerConfig(keep=KEEP_ALL)
PATHS = PathSet(name="grids", paths=(TO_IMAGE, TO_CANNY, JOINT, TURNED))


@pytest.fixture(scope="module")
def graph(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Graph:
    """Eight photographs; the last two have no caption."""
    folder = Path(shutil.copytree(photos, tmp_path_factory.mktemp("grid") / "photos"))
    for number, file in enumerate(sorted(folder.iterdir())):
        if number < 6:
            file.with_suffix(".txt").write_text(f"Photograph number {number}.")
        elif number >= 8:
            file.unlink()
    out = folder.parent / "g"
    complete(build(folder, out, ["canny", "lsd", Halves(), "source_caption", Styles()]))
    return Graph.open(out)


@pytest.fixture(scope="module")
def tasks(graph: Graph) -> list[GridTask]:
    sampler = PathSampler(graph, PATHS, config=EVERY_WORD)
    return [sampler.task(index, 48) for index in range(40)]


def caption(graph: Graph, item_ix: int) -> str | None:
    status = graph.edges("caption").filter([row == item_ix for row in graph.edges("caption")["item_ix"].to_pylist()])
    return graph.read(item_ix, "caption").text if status["status"].to_pylist() == ["ok"] else None


def test_the_tasks_cover_what_is_tested(tasks: list[GridTask]) -> None:
    """The fixture draws every path, every number of rows, and holes away from the target."""
    assert {task.walk.path.name for task in tasks} == {path.name for path in PATHS.paths}
    assert {len(task.rows) for task in tasks} == {1, 2, 3}
    assert any(task.holes != task.walk.targets for task in tasks)


def test_cells_are_the_nodes_of_the_graph(graph: Graph, tasks: list[GridTask]) -> None:
    """A cell of another item, variant or seed than the walk says would make its record a lie."""
    for task in tasks[:12]:
        for row, nodes in enumerate(task.rows):
            for column, node in enumerate(nodes):
                assert node.kind == task.walk.kinds[column] and node.item_ix == task.walk.rows[row]
                again = graph.read(
                    task.walk.rows[row], node.kind, node.variant, node.version or None, seed=task.walk.seeds[row]
                )
                assert np.array_equal(again.array(), node.array())
                assert np.array_equal(task.cell(row, column), centre_square(again.array(), 48))


def test_the_picture_shows_cells_and_holes(tasks: list[GridTask]) -> None:
    """Cells lie where the labels say, red frames are around the holes and on nothing else, and no word is cut off."""
    for task in tasks[:20]:
        drawn = np.asarray(task.image())
        step, wide = 48 + sheet.MARGIN, sheet.column_width(task.walk.kinds, 48)
        assert drawn.shape[1] >= len(task.walk.kinds) * wide + sheet.MARGIN
        assert (drawn[:, -sheet.MARGIN // 2 :] == 255).all()
        assert (drawn[sheet.LABEL - 5] == 255).all()
        assert drawn.shape[0] > sheet.LABEL + len(task.rows) * step
        for row in range(len(task.rows)):
            for column in range(len(task.walk.kinds)):
                top, left = sheet.LABEL + row * step, sheet.MARGIN + column * wide
                assert np.array_equal(drawn[top : top + 48, left : left + 48], task.cell(row, column))
                frame = {tuple(drawn[top + 20, left + side]) for side in (-2, 49)}
                frame |= {tuple(drawn[top + side, left + 20]) for side in (-2, 49)}
                hole = row == len(task.rows) - 1 and column in task.holes
                assert frame == {sheet.HOLE if hole else (255, 255, 255)}


def test_words_are_on_the_picture_in_full(graph: Graph) -> None:
    """A long instruction must make the sheet higher, not run out of it."""
    sampler = PathSampler(graph, PATHS)
    task = sampler.task(0, 200)
    drawn = np.asarray(task.image())
    words = drawn[sheet.LABEL + len(task.rows) * (200 + sheet.MARGIN) :]
    dark = np.argwhere((words < 128).all(axis=2))
    assert len(dark) > 200 and dark[:, 0].max() < len(words) - 2 and dark[:, 1].max() < drawn.shape[1] - 2


def test_a_document_survives_json_and_obeys_its_schema(graph: Graph, tasks: list[GridTask]) -> None:
    """A line of walks.jsonl is read by other programs: it must be what the contract says, and name every cell."""
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((ROOT / "schemas/v1/walk.schema.json").read_text())
    for task in tasks:
        document = task.document()
        text = document.model_dump_json()
        jsonschema.validate(json.loads(text), schema)
        assert WalkDocument.model_validate_json(text) == document and "\n" not in text
        assert document.switches["cell_fit"] == "crop_square" and document.switches["keep"]["task"] == 1
        assert document.rows == list(task.walk.rows) and document.holes == list(task.holes)
        assert document.snapshot == graph.digest and document.instruction == task.prompt
        assert [[cell.kind for cell in row] for row in document.cells] == [list(task.walk.kinds)] * len(task.rows)
        stored = {cell.kind: cell.version for row in document.cells for cell in row if cell.kind in graph.head}
        assert stored == {kind: graph.live(kind).version for kind in stored}


def test_content_is_the_caption_of_the_query_when_it_is_generated(graph: Graph, tasks: list[GridTask]) -> None:
    """Words about a picture that is not asked for, or of another row, would mislead."""
    for task in tasks:
        words = caption(graph, task.walk.rows[-1])
        if task.walk.path.name == "to-image" and words:
            assert task.instruction.content.endswith(words) and task.prompt.endswith(words)
        else:
            assert task.instruction.content == ""
    assert any(task.instruction.content for task in tasks)


def test_words_name_rows_columns_and_targets(tasks: list[GridTask]) -> None:
    """The instruction speaks of the grid that is shown, and of the declared target even if another cell is hidden."""
    for task in tasks:
        rows, columns = len(task.rows), len(task.walk.kinds)
        assert f"{rows} rows and {columns} columns, displaying {rows * columns} images" in task.prompt
        assert all(f"[IMAGE{column + 1}]" in task.instruction.task for column in range(columns))


def test_a_task_is_the_same_every_time(graph: Graph) -> None:
    """Words and degradations are part of what walk i means."""
    first, second = (PathSampler(Graph.open(graph.url), PATHS, seed=3).task(7, 40) for _ in range(2))
    assert first.prompt == second.prompt and first.document() == second.document()
    assert first.image().tobytes() == second.image().tobytes()


@pytest.mark.parametrize(("height", "width"), [(10, 10), (30, 70), (70, 30), (1, 1), (1, 40), (7, 200)])
@pytest.mark.parametrize("side", [16, 33])
def test_centre_square_cuts_the_middle(height: int, width: int, side: int) -> None:
    """Odd sizes and extreme shapes give a full cell, cut from the middle and not from a corner."""
    picture = np.zeros((height, width, 3), np.uint8)
    edge = min(height, width)
    top, left = (height - edge) // 2, (width - edge) // 2
    picture[top : top + edge, left : left + edge] = (10, 200, 30)
    cell = centre_square(picture, side)
    assert cell.shape == (side, side, 3) and cell.dtype == np.uint8 and (cell == (10, 200, 30)).all()


def test_a_document_alone_finds_every_cell_again(graph: Graph, tasks: list[GridTask]) -> None:
    """`WalkDocument` promises to be enough to draw the same grid again, degraded cells included."""
    for task in tasks[:12]:
        document: dict[str, Any] = json.loads(task.document().model_dump_json())
        pinned = Graph.open(graph.url, snapshot=document["snapshot"])
        for row, cells in enumerate(document["cells"]):
            for column, cell in enumerate(cells):
                seed = cell.get("seed", document.get("seeds", [0] * 3)[row])
                node = pinned.read(
                    document["rows"][row], cell["kind"], cell["variant"], cell["version"] or None, seed=seed
                )
                assert np.array_equal(node.array(), task.rows[row][column].array()), cell


def test_a_second_sample_draws_nothing_again(graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a `make demo` that opens pictures when nothing changed, and against stale ones when it did."""
    sampler = PathSampler(graph, on_missing="drop")
    first = list(write_tasks(sampler, range(3), 32, tmp_path))
    walks = first[-1].read_text()
    with monkeypatch.context() as patched:
        patched.setattr(GridTask, "image", lambda _: pytest.fail("drawn again"))
        assert list(write_tasks(PathSampler(graph, on_missing="drop"), range(3), 32, tmp_path)) == first
        with pytest.raises(pytest.fail.Exception):
            list(write_tasks(PathSampler(graph, seed=1, on_missing="drop"), range(3), 32, tmp_path))
    assert first[-1].read_text() == walks
    list(write_tasks(sampler, range(3), 48, tmp_path))
    assert first[-1].read_text() != walks


def test_labels_of_small_cells_do_not_overlap() -> None:
    """Guards against two names on one another, of which neither can be read, above cells of 16 px."""
    cell = np.zeros((16, 16, 3), np.uint8)

    def ink(*labels: str) -> int:
        drawn = np.asarray(sheet.draw([[cell] * len(labels)], [labels], [], ["words"]))
        return int((drawn[: sheet.LABEL - 2] < 128).any(axis=(0, 2)).sum())

    names = ("contrast_strengthen", "style_reference", "hed")
    assert ink(*names) == sum(map(ink, names))

"""How cells are cut and put together, and the names and colours in the words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, get_args

import cv2
import numpy as np
import pytest
import skimage.data

from graphbuild.images.codecs import CODECS, Pixels
from graphbuild.images.node import Node
from graphbuild.tasks.cells import cover, fit_size, frames, stretch
from graphbuild.tasks.config import CellConfig, Decode, SamplerConfig
from graphbuild.tasks.grid import GridTask
from graphbuild.tasks.instruction import Keep
from graphbuild.tasks.labels import COLOURS, colour_name, labels_of
from graphbuild.tasks.paths import Content, TaskPath
from graphbuild.tasks.walk import Walk

CELLS = ("reference", "mask", "depth", "image")
CAPTION = "A corgi on a red sofa."


@dataclass
class Pictures:
    """Stands for a graph: a picture for every (item, kind), and one caption."""

    pictures: Mapping[tuple[int, str], Pixels | Node]
    head: Mapping[str, Any] = field(default_factory=lambda: {"caption": None})

    def read(self, item_ix: int, kind: str, variant: int = 0, version: Any = None, *, seed: int = 0) -> Node:
        if kind == "caption":
            return Node(item_ix, kind, 0, "", CAPTION.encode(), "text", "text")
        found = self.pictures[item_ix, kind]
        return found if isinstance(found, Node) else Node.computed(item_ix, kind, found)


def pick(label: str, n: int) -> int:
    return sum(label.encode()) % n


def task_of(rows: list[list[Pixels]], holes: tuple[int, ...], resolution: int, **options: Any) -> GridTask:
    """A task with these pictures, or nodes; `content_of` is the column that its caption describes."""
    num_columns = len(rows[0])
    cells = options.pop("kinds", CELLS[-num_columns:])
    content_of = options.pop("content_of", None)
    targets = options.pop("targets", (num_columns - 1,))
    content = None if content_of is None else Content(source="caption", of=cells[content_of])
    walk = Walk(
        index=5,
        path=TaskPath(name="p", cells=cells, targets=targets, content=content),
        rows=tuple(range(len(rows))),
        variants=((0,) * num_columns,) * len(rows),
        columns=tuple(range(num_columns)),
        holes=holes,
        seeds=(0,) * len(rows),
    )
    pictures = {(at, kind): picture for at, row in enumerate(rows) for kind, picture in zip(cells, row, strict=True)}
    graph, config = Pictures(pictures), SamplerConfig(keep=Keep(task=0), layout="random")  # evaluation says everything
    drawing: Any = SimpleNamespace(graph=graph, pick=lambda index: pick, config=config)
    return GridTask(walk, drawing, resolution, cells=CellConfig(**options))


def picture(rng: np.random.Generator, width: int, height: int) -> Pixels:
    return rng.integers(0, 256, (height, width, 3), np.uint8)


def flat(*colour: int, width: int = 40, height: int = 40) -> Pixels:
    return np.full((height, width, 3), colour, np.uint8)


def mask_node(values: Any, palette: list[list[int]], labels: list[str | None]) -> Node:
    encoded = CODECS["labels"].encode(np.asarray(values, np.uint8))
    return Node(0, "mask", 0, "v", encoded.data, "png", "labels", {"palette": palette, "labels": labels})


def boxes_node(*boxes: tuple[str, list[int]]) -> Node:
    places = [
        {"label": label, "colour": colour, "box": [4, 4, 20 + at, 30]} for at, (label, colour) in enumerate(boxes)
    ]
    encoded = CODECS["boxes"].encode({"width": 40, "height": 40, "boxes": places})
    return Node(0, "boxes", 0, "v", encoded.data, "json", "boxes")


# ---- switches ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"cell_fit": "cover"}, "cell_fit: 'cover'; allowed: crop_square, stretch_square, aspect"),
        ({"row_sizes": "any"}, "row_sizes: 'any'; allowed: shared, own"),
        ({"hole_fill": "white"}, "hole_fill: 'white'; allowed: black, grey"),
        ({"degrade_at": "384"}, "degrade_at: '384'; allowed: 512, source, cell"),
    ],
)
def test_a_wrong_switch_is_an_error(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CellConfig(**values)


def test_cell_fits() -> None:
    """Cut, squeezed, or in shape: a picture of three bands shows which."""
    bands = np.concatenate([flat(250, 0, 0), flat(0, 250, 0), flat(0, 0, 250)], axis=1)
    made = {
        fit: task_of([[bands, bands]], (1,), 48, cell_fit=fit).cell(0, 0)
        for fit in ("crop_square", "stretch_square", "aspect")
    }
    assert [made[fit].shape for fit in made] == [(48, 48, 3), (48, 48, 3), (16, 80, 3)]
    assert (made["crop_square"] == (0, 250, 0)).all()
    for fit in ("stretch_square", "aspect"):
        middle = made[fit][8]
        assert [int(middle[at].argmax()) for at in (2, len(middle) // 2, len(middle) - 3)] == [0, 1, 2]


@pytest.mark.parametrize(("fill", "value"), [("black", 0), ("grey", 128)])
def test_holes_are_filled(fill: str, value: int) -> None:
    """The truth must not be in what the model is given; it is there when asked for."""
    rows = [[flat(9, 9, 9), flat(50, 60, 70)], [flat(9, 9, 9), flat(51, 61, 71)]]
    task = task_of(rows, (1,), 32, hole_fill=fill)
    assert task.hole_mask.tolist() == [[False, False], [False, True]]
    assert (task.cells()[1][1] == value).all() and (task.cells()[0][1] == (50, 60, 70)).all()
    assert (task.cells(filled=True)[1][1] == (51, 61, 71)).all() and (task.cell(1, 1) == (51, 61, 71)).all()


def test_only_what_is_asked_for_is_decoded() -> None:
    """The words and one cell of a grid must not cost the pictures of all the others."""
    broken = Node(0, "image", 0, "v", b"", "jpeg", "source")
    task = task_of([[flat(1, 2, 3), broken]], (1,), 32)  # type: ignore[list-item]
    assert task.evaluation.text and (task.cell(0, 0) == (1, 2, 3)).all()


@pytest.mark.parametrize("size", [(10, 10), (96, 64), (64, 97), (1, 40), (300, 7), (33, 33)])
@pytest.mark.parametrize("cell", [(16, 16), (48, 32), (16, 80)])
def test_cover_and_stretch(size: tuple[int, int], cell: tuple[int, int]) -> None:
    """Any picture gives a full cell without a black border, one colour stays that colour."""
    picture = flat(10, 200, 30, width=size[0], height=size[1])
    for made in (cover(picture, cell), stretch(picture, cell)):
        assert made.shape == (cell[1], cell[0], 3) and (made == (10, 200, 30)).all() and made.flags.writeable


@pytest.mark.parametrize("fit", ["crop_square", "stretch_square", "aspect"])
@pytest.mark.parametrize("kind", ["image", "hed"])
@pytest.mark.parametrize("size", [(800, 600), (511, 477), (467, 701)], ids=str)
def test_fast_decoding_is_close_and_exact_is_exact(size: tuple[int, int], kind: str, fit: Any) -> None:
    """Guards against cells of another place, scale or sharpness: the decoder rounds sides up, by which a picture must
    not grow beside its edges."""
    photo = cv2.resize(skimage.data.astronaut(), size, interpolation=cv2.INTER_AREA)
    codec = "jpeg_gray" if kind == "hed" else "jpeg"
    node = Node(0, kind, 0, "v0", CODECS[codec].encode(photo[:, :, 0] if kind == "hed" else photo).data, "jpeg", codec)
    cells = {}
    for decode in get_args(Decode):
        (frame,) = frames(1, lambda row: size, 352, CellConfig(cell_fit=fit, decode=decode), squares=False)
        cells[decode] = np.zeros((*frame.size[::-1], 3), np.uint8)
        frame.paint(node, cells[decode])
    assert np.array_equal(frame.cell(node.array()), cells["exact"])
    assert not np.array_equal(cells["exact"], cells["fast"]) and cv2.PSNR(cells["exact"], cells["fast"]) > 34
    moved = np.roll(cells["exact"], 1, axis=1)
    assert cv2.PSNR(cells["exact"], moved) < 30, "the test itself: a shift of one pixel shows"


def test_fast_decoding_reads_as_few_eighths_as_a_cell_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against pictures decoded smaller than their cell, and against nothing gained."""
    photo = cv2.resize(skimage.data.astronaut(), (800, 600), interpolation=cv2.INTER_AREA)
    node = Node(0, "image", 0, "v0", CODECS["jpeg"].encode(photo).data, "jpeg", "jpeg")
    asked: list[int] = []
    plain = Node.at_eighths
    monkeypatch.setattr(Node, "at_eighths", lambda self, eighths: asked.append(eighths) or plain(self, eighths))
    for side, eighths in ((75, [1]), (76, [2]), (300, [4]), (301, [5]), (526, []), (600, []), (700, [])):
        asked.clear()
        (frame,) = frames(1, lambda row: (800, 600), side, CellConfig(decode="fast"), squares=False)
        frame.paint(node, np.zeros((side, side, 3), np.uint8))
        assert asked == eighths, side
    assert [plain(node, eighths).shape for eighths in (1, 3, 8)] == [(75, 100, 3), (225, 300, 3), (600, 800, 3)]  # type: ignore[union-attr]


def test_fit_size_keeps_area_and_shape() -> None:
    """About resolution squared pixels, sides multiples of 16, never 0."""
    for width, height in [(100, 100), (1500, 1000), (9, 16), (1, 4000), (4000, 1)]:
        across, down = fit_size((width, height), 384)
        assert across % 16 == down % 16 == 0 and across * down > 0
        if 0.5 < width / height < 2:
            assert 0.85 * 384**2 < across * down <= 384**2
            assert across / down == pytest.approx(width / height, rel=0.06)


def test_a_long_strip_costs_about_its_own_memory() -> None:
    """A web comic of 800 x 30000 beside ordinary pictures: its cell is capped in shape, and the others are resized
    straight to it. They were once enlarged to 30000 x 30000 px."""
    example, query = frames(2, lambda row: (800, 30000), 384, CellConfig(cell_fit="aspect"), squares=False)
    assert example.size == query.size == (128, 1072)
    assert query.cut(np.zeros((30000, 800), np.uint8)).shape == (6400, 800)
    y, x = np.mgrid[0:512, 0:512] // 2
    shown = np.stack([x, y, y], axis=2).astype(np.uint8)
    cut = example.cut(shown)
    assert cut.nbytes <= 8 << 20 and fit_size((cut.shape[1], cut.shape[0]), 384) == example.size
    cell = example.cell(shown).astype(int)
    assert cell[0, 0, 1] < 4 and cell[-1, -1, 1] > 251, "all of its height is there"
    assert 110 < cell[500, 0, 0] < cell[500, -1, 0] < 146, "and the middle of its width"


def test_the_picture_shows_cells_of_any_size() -> None:
    """Rows of their own sizes lie apart, the hole framed at its own size."""
    rows = [[flat(9, 9, 9, width=80), flat(1, 1, 1)], [flat(9, 9, 9, height=90), flat(5, 5, 5)]]
    task = task_of(rows, (1,), 48, cell_fit="aspect", row_sizes="own")
    assert [row[1].shape for row in task.cells()] == [(32, 64, 3), (64, 32, 3)]
    sheet = np.asarray(task.image())
    assert sheet.shape[1] >= 2 * (64 + 12) + 12
    top, left = 28 + 64 + 12, 12 + 64 + 12
    assert (sheet[top : top + 64, left : left + 32] == 5).all()
    assert {tuple(sheet[top + 20, left + at]) for at in (-2, 33)} == {(214, 39, 40)}


def test_context_pictures_are_cut_and_not_resized() -> None:
    """Under `shared` the pipeline gets a part of the stored picture, shaped like the query, not a copy made twice."""
    rng = np.random.default_rng(1)
    for _ in range(100):
        sizes = [(int(w), int(h)) for w, h in rng.integers(200, 400, (2, 2))]
        rows = [[flat(1, 1, 1, width=width, height=height)] * 2 for width, height in sizes]
        task = task_of(rows, (1,), 256, cell_fit="aspect")
        cut, query = (row[0] for row in task.pipeline_kwargs()["image"])
        assert query.size == sizes[1] and cut.width <= sizes[0][0] and cut.height <= sizes[0][1]
        assert cut.width == sizes[0][0] or cut.height == sizes[0][1]
        assert cut.width / cut.height == pytest.approx(query.width / query.height, rel=0.02)


# ---- names and colours -------------------------------------------------------------------------------------------


def test_classes_and_colours_go_into_the_words() -> None:
    """Names of what is there, the largest first, and not of what the palette knows besides."""
    palette = [[0, 0, 0], [255, 0, 0], [0, 0, 255], [0, 255, 0]]
    values = [[0, 2, 2], [2, 2, 1], [0, 0, 0]]
    node = mask_node(values, palette, ["background", "ball", "dog", "cat"])
    assert labels_of(node) == [("dog", (0, 0, 255)), ("ball", (255, 0, 0))]
    task = task_of([[node, flat(1, 1, 1)]], (1,), 16, kinds=("mask", "image"))  # type: ignore[list-item]
    assert "(dog in blue, ball in red)" in task.evaluation.task


def test_the_query_rows_classes_are_named() -> None:
    """Colours of a context row belong to other objects."""
    first = mask_node([[1]], [[0, 0, 0], [255, 0, 0]], ["", "ball"])
    last = mask_node([[1]], [[0, 0, 0], [0, 0, 255]], ["", "dog"])
    task = task_of([[first, flat(1, 1, 1)], [last, flat(1, 1, 1)]], (0,), 16, kinds=("mask", "image"))  # type: ignore[list-item]
    assert "(dog in blue)" in task.evaluation.text and "ball" not in task.evaluation.text


def test_names_of_boxes_go_into_the_words() -> None:
    """Two boxes of one name and colour are named once; without boxes nothing is said."""
    node = boxes_node(("dog", [0, 0, 255]), ("dog", [0, 0, 255]), ("ball", [255, 0, 0]))
    assert labels_of(node) == [("dog", (0, 0, 255)), ("ball", (255, 0, 0))]
    task = task_of([[node, flat(1, 1, 1)]], (1,), 16, kinds=("boxes", "image"))  # type: ignore[list-item]
    assert "(dog in blue, ball in red)" in task.evaluation.task
    assert labels_of(boxes_node()) == []


def test_maps_without_names_say_nothing() -> None:
    """`segments` have colours but no classes; a short list names only what it covers."""
    assert labels_of(Node(0, "segments", 0, "v", *_map([[0, 1]]), "labels", {"palette": [[0, 0, 0], [9, 9, 9]]})) == []
    assert labels_of(mask_node([[0, 1, 2]], [[0, 0, 0], [9, 9, 9], [5, 5, 5]], [None, "dog"])) == [("dog", (9, 9, 9))]


def _map(values: Any) -> tuple[bytes, str]:
    return CODECS["labels"].encode(np.asarray(values, np.uint8)).data, "png"


def test_colour_names() -> None:
    """Pure colours have the names everybody gives them, and every name is reached by its own colour."""
    said = {
        (255, 0, 0): "red", (0, 255, 0): "lime", (0, 0, 255): "blue", (255, 255, 0): "yellow", (0, 255, 255): "cyan",
        (255, 0, 255): "magenta", (0, 0, 0): "black", (255, 255, 255): "white", (127, 127, 127): "grey",
        (0, 128, 0): "green", (255, 165, 0): "orange", (139, 69, 19): "brown", (255, 192, 203): "pink",
    }  # fmt: skip
    assert {colour: colour_name(colour) for colour in said} == said
    assert [colour_name(colour) for colour in COLOURS.values()] == list(COLOURS)

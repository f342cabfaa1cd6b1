"""Words of tasks whose cells are views, against OneDiffusion's published prompt guide."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest

from graphbuild.annotators import resolve
from graphbuild.annotators.base import Annotator, Derived, Request
from graphbuild.data import GridTasks
from graphbuild.images.codecs import CODECS
from graphbuild.images.node import Node
from graphbuild.kinds.registry import KINDS, kind_of
from graphbuild.store.graph import Graph
from graphbuild.tasks.config import SamplerConfig
from graphbuild.tasks.grid import GridTask
from graphbuild.tasks.instruction import KEEP_ALL, Keep
from graphbuild.tasks.labels import Colour, labels_of, recoloured
from graphbuild.tasks.paths import Content, PathSet, TaskPath
from graphbuild.tasks.sampler import PathSampler
from graphbuild.tasks.tokens import COLOURS, MOST_CLASSES, View, compose, drawn_colours, token_of
from tests.support.annotators import complete
from tests.support.everything import annotate_pairs, write_pairs

GUIDE = {
    "text2image": ["image"],
    "deblurring": ["image", "blur"],
    "image_inpainting": ["image", "inpainting"],
    "canny2image": ["image", "canny"],
    "depth2image": ["image", "depth"],
    "hed2img": ["image", "hed"],
    "pose2image": ["image", "pose"],
    "image_editing": ["edit_local", "image"],
    "semanticmap2image": ["image", "semantic"],
    "boundingbox2image": ["image", "boxes"],
    "subject_driven": ["image", "reference"],
}
"""Token of the guide's table 5.1 -> kinds of such a task; `faceid` and `multiview` depend on the task's type."""
GUIDE_COLOURS = (
    "FF0000 red, 00FF00 lime, 0000FF blue, FFFF00 yellow, FF00FF magenta, 00FFFF cyan, FFA500 orange, 800080 purple, "
    "A52A2A brown, 008000 green, FFC0CB pink, 008080 teal, FF8C00 darkorange, 8A2BE2 blueviolet, 006400 darkgreen, "
    "FF4500 orangered, 000080 navy, FFD700 gold, 40E0D0 turquoise, DA70D6 orchid"
)
"""Table 5.2."""


def said(*views: Any, type_name: str = "", item: str = "") -> str:
    """The words of views given as kinds, or (kind, caption or labels)."""
    made = []
    for number, view in enumerate(views):
        kind, said = view if isinstance(view, tuple) else (view, "")
        named = {"caption": said} if isinstance(said, str) else {"labels": said}
        made.append(View(kind=kind_of(kind), number=number, **named))
    return " ".join(filter(None, compose(made, type_name=type_name, item=item)))


# ---- the published guide -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("token", "kinds"), GUIDE.items())
def test_the_tokens_of_the_guide(token: str, kinds: Sequence[str]) -> None:
    assert re.findall(r"\[\[(?!img)(\w+)\]\]", said(*kinds)) == [token]
    assert re.findall(r"\[\[(?!img)(\w+)\]\]", said(*reversed(kinds))) == [token], "both directions share it"


def test_the_examples_of_the_guide() -> None:
    """Word for word as the guide, its table and its programs write them."""
    dragon = [("dragon", COLOURS["cyan"]), ("woman", COLOURS["purple"])]
    assert said(("image", "A woman in a red dress."), ("semantic", dragon)) == (
        "[[semanticmap2image]] <#00FFFF cyan mask: dragon> <#800080 purple mask: woman> A woman in a red dress."
    )
    assert said("image", ("boxes", dragon[:1])) == "[[boundingbox2image]] <#00FFFF cyan boundingbox: dragon>"
    assert said(("image", "a cat"), "depth") == "[[depth2image]] a cat"
    assert said(("edit_local", "change it to winter and snowy weather"), "image") == (
        "[[image_editing]] change it to winter and snowy weather"
    )
    assert said(("image", "A dog, on a beach."), ("reference", "A dog."), item="cartoon dog") == (
        "[[subject_driven]] <item: cartoon dog> [[img0]] A dog, on a beach. [[img1]] A dog."
    )
    people = [("image", f"A woman {at}.") for at in range(4)]
    assert said(*people, type_name="ID customization", item="a woman") == (
        "[[faceid]] [[img0]] A woman 0. [[img1]] A woman 1. [[img2]] A woman 2. [[img3]] A woman 3."
    )
    assert said(("image", "A cat."), "image", "image", type_name="multi-view") == "[[multiview]] A cat."


def test_the_colours_of_the_guide() -> None:
    listed = dict(reversed(entry.split()) for entry in GUIDE_COLOURS.split(", "))
    assert {name: "{:02X}{:02X}{:02X}".format(*rgb) for name, rgb in COLOURS.items()} == listed


# ---- beyond it -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(kind.name for kind in KINDS.values() if kind.phrases and kind.name != "image"))
def test_every_kind_has_a_token(kind: str) -> None:
    """Guards against a task whose words say nothing of what it is."""
    assert re.fullmatch(r"\[\[[a-z][a-z_]*2?[a-z_]*\]\]( \[\[img\d\]\])*", said("image", kind)), said("image", kind)
    assert token_of(kind_of(kind)) not in ("", "text2image")


def test_several_conditions_and_pictures() -> None:
    """Guards against numbers that are not those of the views, and a token that is said twice."""
    words = said(("image", "A dog."), "canny", "edit_local.canny", ("reference", "It sits."), "reference", item="dog")
    assert words == "[[canny2image]] [[subject_driven]] <item: dog> [[img0]] A dog. [[img3]] It sits. [[img4]]"
    assert said("style_content", "style_reference", "depth") == "[[style_transfer]] [[depth2image]]"


def test_colours_are_drawn() -> None:
    """Guards against two classes of one colour, a colour that says something of a class, and more than can be said."""
    rng = np.random.default_rng(0)
    first = set()
    for _ in range(300):
        colours = drawn_colours([f"thing {at % 30}" for at in range(60)], 1, lambda label, n: int(rng.integers(n)))
        assert len(set(colours.values())) == len(colours) == MOST_CLASSES and set(colours.values()) <= {
            *COLOURS.values()
        }
        first.add(colours["thing 0"])
    assert first == set(COLOURS.values())


BLUE: Colour = (0, 0, 255)


def test_a_label_map_in_other_colours() -> None:
    """Guards against labels that are shown and not named, or named and shown in another colour."""
    values = np.repeat(np.arange(5, dtype=np.uint8), 8).reshape(5, 8)
    attrs = {"labels": ["", "cat", "dog", "cat"], "palette": [[9, 9, 9]] * 5}
    node = Node(0, "mask", 0, "v", CODECS["labels"].encode(values).data, "png", "labels", attrs)
    shown = recoloured(node, {"cat": BLUE})
    assert [tuple(row[0]) for row in shown.array()] == [(0, 0, 0), BLUE, (0, 0, 0), BLUE, (0, 0, 0)]
    assert set(labels_of(shown)) >= {("cat", BLUE)} and np.array_equal(shown.values(), values)


def test_boxes_in_other_colours() -> None:
    boxes = [
        {"label": name, "box": [at, at, at + 9, at + 9], "colour": [9, 9, 9]} for at, name in enumerate(["a", "b"])
    ]
    document = {"width": 40, "height": 20, "boxes": boxes}
    node = Node(0, "boxes", 0, "v", json.dumps(document).encode(), "json", "boxes")
    shown = recoloured(node, {"b": BLUE})
    assert labels_of(shown) == [("b", BLUE)] and {tuple(rgb) for row in shown.array() for rgb in row} == {
        (0, 0, 0),
        BLUE,
    }


# ---- from a graph --------------------------------------------------------------------------------------------------


PATHS = PathSet(
    name="views",
    paths=tuple(
        TaskPath(name="-".join(cells), cells=cells, targets=(len(cells) - 1,), layout="views", content=content)
        for content in [Content(source="caption", of="image")]
        for cells in (("mask", "image"), ("boxes", "image"), ("reference", "image"))
    ),
)


@dataclass(frozen=True, kw_only=True)
class Halves(Annotator):
    """Boxes and a mask of the left and right half, the left one a cat."""

    makes: ClassVar[tuple[str, ...]] = ("boxes", "mask")

    def annotate(self, batch: Sequence[Request], model: Any) -> list[Derived]:
        return [self._halves(*request.inputs["image"].array().shape[:2]) for request in batch]

    def _halves(self, height: int, width: int) -> Derived:
        middle = width // 2
        sides = {"cat": (0, 0, middle, height), "dog": (middle, 0, width, height)}
        boxes = [{"label": name, "box": list(box), "colour": [9, 9, 9]} for name, box in sides.items()]
        mask = np.ones((height, width), np.uint8)
        mask[:, middle:] = 2
        attrs = {"labels": ["", *sides], "palette": [[0, 0, 0], [9, 9, 9], [8, 8, 8]]}
        return Derived({"boxes": {"width": width, "height": height, "boxes": boxes}, "mask": mask}, attrs=attrs)


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    folder = tmp_path_factory.mktemp("tokens")
    annotators = [resolve("source_caption"), Halves()]
    complete(annotate_pairs(write_pairs(folder / "pairs", 4), folder / "g", annotators, executor="inline"))
    return Graph.open(folder / "g")


def sampler_of(graph: Graph, seed: int = 0) -> PathSampler:
    return PathSampler(graph, PATHS, seed=seed, config=SamplerConfig(rows=(1.0,), keep=KEEP_ALL))


def task_of(graph: Graph, path: str, index: int = 0, seed: int = 0) -> GridTask:
    sampler = sampler_of(graph, seed)
    return sampler.task(sampler.walk(index, path=path), 64)


@pytest.mark.parametrize("kind", ["mask", "boxes"])
def test_the_words_name_the_colours_that_are_shown(graph: Graph, kind: str) -> None:
    """Guards against words about other colours than the picture has; they differ from task to task, and are always the
    same for one."""
    seen = set()
    for index in range(12):
        task = task_of(graph, f"{kind}-image", index)
        named = re.findall(r"<#(\w{6}) (\w+) (\w+): ([^>]+)>", task.prompt)
        assert named and {mark for _, _, mark, _ in named} == {"mask" if kind == "mask" else "boundingbox"}
        column = next(at for at, each in enumerate(task.kinds) if each.name == kind)
        colours = {tuple(rgb) for row in task.node(-1, column).array() for rgb in row.tolist()} - {(0, 0, 0)}
        assert colours == {tuple(bytes.fromhex(rgb)) for rgb, *_ in named} == {COLOURS[name] for _, name, _, _ in named}
        assert task.prompt == task_of(graph, f"{kind}-image", index).prompt == task.evaluation.text
        seen.add(named[0][:2])
    assert len(seen) > 3 and task_of(graph, f"{kind}-image", 0, seed=5).prompt != task_of(graph, f"{kind}-image").prompt


def test_subjects_and_references_are_named(graph: Graph) -> None:
    task = task_of(graph, "reference-image")
    (item,) = [row for row in graph.items().to_pylist() if row["item_ix"] == task.walk.rows[-1]]
    subject, caption, other = item["subject"], item["caption"], item["reference_caption"]
    assert all((subject, caption, other)) and caption != other
    assert task.prompt == f"[[subject_driven]] <item: {subject}> [[img0]] {caption} [[img1]] {other}"
    assert task.words("pipeline", Keep(task=1, content=0, all=1)).text == f"[[subject_driven]] <item: {subject}>"
    assert task.words("pipeline", Keep(task=0, content=0, all=1)).text == ""


def test_example_rows_are_not_spoken_of(graph: Graph) -> None:
    """Guards against pictures of other subjects called views of this one."""
    sampler = PathSampler(graph, PATHS, config=SamplerConfig(rows=(0.0, 1.0), keep=KEEP_ALL))
    task = sampler.task(sampler.walk(0, path="mask-image"), 64)
    assert (
        len(task.walk.rows) == 2 and task.prompt.startswith("[[semanticmap2image]] <#") and "[[img" not in task.prompt
    )


def test_views_of_one_group_have_a_caption_each(graph: Graph) -> None:
    path = TaskPath(name="views", type="faceid", cells=("image",), targets=(0,), layout="views", views=(1, 1),
                    content=Content(source="caption", of="image"))  # fmt: skip
    sampler = PathSampler(graph, PathSet(name="ids", paths=(path,)), config=SamplerConfig(keep=KEEP_ALL))
    walk = sampler.walk(0)
    other = next(row for row in range(4) if row not in walk.rows)
    task = sampler.task(replace(walk, rows=(other, *walk.rows), variants=((0,), (0,)), seeds=(0, 0)), 64)
    captions = [graph.read(item, "caption").text for item in (*walk.rows, other)]
    assert task.prompt == f"[[faceid]] [[img0]] {captions[0]} [[img1]] {captions[1]}"


def test_a_cached_cell_is_not_shown_in_other_colours(graph: Graph) -> None:
    """Guards against latents of one task's colours beside the words of another."""
    samples = list(GridTasks(sampler_of(graph), resolution=64, stop=40))
    masks = [sample for sample in samples if "mask" in sample.walk.kinds]
    keys = {sample.cell_keys[0][sample.walk.kinds.index("mask")] for sample in masks}
    images = {sample.cell_keys[0][sample.walk.kinds.index("image")] for sample in masks}
    assert len(keys) == len(masks) > len(images)

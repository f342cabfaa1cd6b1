"""Subjects of one graph, composed into the items of another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

from graphbuild.images.codecs import codec_of
from graphbuild.images.composition import CutOut, compose
from graphbuild.sources.base import Entry, Source, SourceItem
from graphbuild.sources.compose import Compose
from graphbuild.sources.testing import check_source
from graphbuild.store.graph import Graph
from tests.support.annotators import build, complete

COLOURS = {"red_cup": (220, 30, 30), "owl": (30, 200, 40), "blue_vase": (40, 60, 230), "lamp": (230, 220, 40)}


@dataclass(frozen=True, kw_only=True)
class Things(Source):
    """Two pictures of each thing: a coloured box on black, with its mask."""

    name: ClassVar[str] = "things"
    makes: ClassVar[tuple[str, ...]] = ("image", "foreground_mask")

    def entries(self) -> Sequence[Entry]:
        return [Entry(f"{name}/{view}", "1") for name in sorted(COLOURS) for view in range(2)]

    def read(self, keys: Sequence[str]) -> Iterator[SourceItem]:
        for key in keys:
            name, view = key.split("/")
            picture, mask = np.zeros((80, 60, 3), np.uint8), np.zeros((80, 60), bool)
            mask[10 + int(view) : 70, 20:50] = True
            picture[mask] = COLOURS[name]
            data = codec_of("png").encode(picture).data
            yield SourceItem(
                key=key,
                uri=key,
                original=data,
                nodes={"image": data, "foreground_mask": mask},
                group=name,
                licence="CC0",
            )


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("compose")
    complete(build(Things(), folder / "things", []))
    (folder / "rooms").mkdir()
    for number in range(3):
        Image.new("RGB", (300, 200), (100 + number, 100, 100)).save(folder / "rooms" / f"{number}.png")
    return {"path": str(folder / "things"), "backgrounds": str(folder / "rooms")}


def test_the_contract(places: dict[str, Any]) -> None:
    check_source(Compose(**places, count=6, resolution=160))


def test_subjects_are_where_boxes_and_masks_say(places: dict[str, Any], tmp_path: Path) -> None:
    """In a graph: colours of what was pasted, its box, its name, its own picture and the caption agree."""
    complete(build(Compose(**places, count=8, resolution=240), tmp_path / "g", ["source_caption"]))
    graph = Graph.open(tmp_path / "g")
    assert graph.kinds()["boxes"] == graph.kinds()["mask"] == graph.kinds()["caption"] == 8
    for item in range(8):
        image, labels = graph.read(item, "image").array(), graph.read(item, "mask")
        boxes = graph.read(item, "boxes").values()["boxes"]
        assert max(image.shape[:2]) == 240 and 2 <= len(boxes) <= 3 and labels.values().shape == image.shape[:2]
        for box in boxes:
            number = labels.attrs["labels"].index(box["label"])
            rows, columns = np.nonzero(labels.values() == number)
            assert box["box"] == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert labels.attrs["palette"][number] == box["colour"]
            seen = image[labels.values() == number].astype(int)
            assert np.abs(np.median(seen, axis=0) - COLOURS[box["label"]]).max() < 16
            own = graph.read(item, "reference", number - 1).array()
            assert own.shape == (80, 60, 3) and (own[40, 30] == COLOURS[box["label"]]).all()
        names = [box["label"].replace("_", " ") for box in sorted(boxes, key=lambda b: b["box"][0] + b["box"][2])]
        words = graph.read(item, "caption").text
        assert [words.index(name) for name in names] == sorted(words.index(name) for name in names)
        assert "an owl" in words or "owl" not in words
    assert graph.items()["licence"].to_pylist() == ["CC0"] * 8


def test_pools_keep_subjects_apart(places: dict[str, Any]) -> None:
    """Guards against a subject on both sides of a split by group, and two views of one subject in a picture."""
    source = Compose(**places, count=20, most=2, pool=2, resolution=64)
    things = Graph.open(places["path"]).items()["group"].to_pylist()
    sides: dict[str | None, set[str]] = {}
    for item in source.read([entry.key for entry in source.entries()]):
        names = [things[number] for number in item.meta["subjects"]]
        assert len(set(names)) == len(names) == 2
        sides.setdefault(item.group, set()).update(names)
    one, other = sides.values()
    assert not one & other and one | other == set(COLOURS)


def test_edges_are_smooth_and_nothing_bleeds() -> None:
    """A red disc on green: guards against a green rim, and against a background changed beside the subject."""
    rows, columns = np.mgrid[:100, :100]
    mask = (rows - 50) ** 2 + (columns - 50) ** 2 < 45**2
    picture = np.where(mask[:, :, None], np.uint8([255, 0, 0]), np.uint8([0, 255, 0])).astype(np.uint8)
    mask[2, 2] = True
    assert CutOut.of(picture, mask).share.shape == (89, 89), "without the speck"
    background = np.full((64, 128, 3), (0, 0, 200), np.uint8)
    made = compose(background, [CutOut.of(picture, mask)] * 2, np.random.default_rng(1))
    assert made.picture[:, :, 1].max() < 8, "no green"
    assert (made.picture[made.labels == 0][:, 2] > 90).all() and {1, 2} == set(np.unique(made.labels)) - {0}
    assert len(np.unique(made.picture[:, :, 0])) > 10, "edges have tones between"


def test_what_cannot_be_composed_is_refused(places: dict[str, Any], tmp_path: Path) -> None:
    refused: tuple[tuple[dict[str, Any], str], ...] = (
        ({"most": 1}, "allowed: 2 <= least <= most <= 8"), ({"pool": 2}, "pool: 2; allowed: at least most"),
        ({"count": 0}, "count: 0; allowed: from 1"),
    )  # fmt: skip
    for wrong, words in refused:
        with pytest.raises(ValueError, match=words):
            Compose(**places, **wrong)
    with pytest.raises(ValueError, match="needs backgrounds"):
        Compose(path=places["path"]).entries()
    with pytest.raises(ValueError, match="no pictures under"):
        Compose(path=places["path"], backgrounds=str(tmp_path)).entries()
    with pytest.raises(ValueError, match="has 4 groups with image and foreground_mask; allowed: from 5"):
        Compose(**places, least=5, most=5).entries()
    with pytest.raises(ValueError, match="is no graph"):
        Compose(path=str(tmp_path), backgrounds=places["backgrounds"]).entries()

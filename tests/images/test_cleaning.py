"""Pictures of other data sets: brought to what their kind promises, or refused."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from graphbuild.errors import UnusableImage
from graphbuild.images.cleaning import fitted
from graphbuild.images.codecs import codec_of

EDGES = np.zeros((40, 48), np.uint8)
EDGES[::8, 4:40] = EDGES[4:30, ::12] = 255
MAP = np.zeros((64, 64, 3), np.uint8)
MAP[:, 20:], MAP[30:, 40:], MAP[:20, :20] = (200, 30, 60), (20, 180, 90), (250, 240, 10)


def file(picture: Any, form: str, **options: Any) -> bytes:
    sink = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(sink, form, **options)
    return sink.getvalue()


def values(codec: str, data: bytes, attrs: Any = None) -> tuple[Any, dict[str, Any]]:
    encoded, _ = fitted(codec, data, attrs or {})
    return codec_of(codec).values(encoded.data, encoded.format), dict(encoded.attrs)


def test_edges_that_were_saved_as_jpeg_are_black_and_white_again() -> None:
    found, attrs = values("png1", file(EDGES, "JPEG", quality=75))
    assert np.array_equal(found, EDGES) and "white from 128" in attrs["cleaned"]


def test_a_mask_of_zeros_and_ones_is_meant_as_black_and_white() -> None:
    found, attrs = values("png1", file(EDGES // 255, "PNG"))
    assert np.array_equal(found, EDGES) and attrs == {"cleaned": "1 is 255"}


def test_what_is_right_stays_and_is_not_called_cleaned() -> None:
    assert values("png1", file(EDGES, "PNG"))[1] == {}
    assert values("png1", file(Image.fromarray(EDGES).convert("1"), "PNG"))[1] == {}


@pytest.mark.parametrize(
    ("codec", "picture", "why"),
    [
        ("png1", np.tile(np.arange(23, dtype=np.uint8) * 11, (8, 1)), "23 grey values where 0 and 255 are promised"),
        ("png8", MAP, "a picture in colour where grey is promised"),
        ("labels", np.tile(np.arange(9, dtype=np.uint8), (9, 1)), "a label map without a palette"),
        ("labels", np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8), "not a map of flat colours"),
    ],
)
def test_values_that_a_kind_does_not_promise_are_refused(codec: str, picture: Any, why: str) -> None:
    with pytest.raises(UnusableImage, match=why) as refused:
        fitted(codec, file(picture, "PNG"))
    assert refused.value.reason == "bad_values"


@pytest.mark.parametrize(("form", "cleaned"), [("PNG", False), ("JPEG", True)])
def test_a_picture_of_flat_colours_becomes_labels_with_these_colours(form: str, cleaned: bool) -> None:
    found, attrs = values("labels", file(MAP, form))
    assert len(attrs["palette"]) == 4 and ("cleaned" in attrs) == cleaned
    shown = np.asarray(attrs["palette"], np.uint8)[found].astype(int)
    wrong = np.abs(shown - MAP).max(2) > 6  # JPEG moves a border by a pixel
    assert wrong.mean() <= (0.03 if cleaned else 0)


def test_labels_take_a_palette_from_their_file_or_from_the_names_that_are_given() -> None:
    labels = (MAP[:, :, 0] > 100).astype(np.uint8)
    indexed = Image.fromarray(labels, "P")
    indexed.putpalette([1, 2, 3, 40, 50, 60])
    found, attrs = values("labels", file(indexed, "PNG"))
    assert np.array_equal(found, labels) and attrs["palette"] == [[1, 2, 3], [40, 50, 60]]
    found, attrs = values("labels", file(labels, "PNG"), {"labels": ["background", "dog"]})
    assert np.array_equal(found, labels) and attrs["palette"][0] == [0, 0, 0] and len(attrs["palette"]) == 2
    with pytest.raises(UnusableImage, match="label 1, but 1 colours"):
        fitted("labels", file(labels, "PNG"), {"labels": ["background"]})


def test_documents_are_checked_and_pictures_of_them_explained() -> None:
    with pytest.raises(UnusableImage, match=r"not a pose value.*declared with codec: source"):
        fitted("pose", file(MAP, "PNG"))
    assert values("text", "\ufeffa cat".encode())[0] == "a cat"


@pytest.mark.data
def test_published_canny_and_segments_are_cleaned(data_folder: Callable[[str], Path]) -> None:
    """Graph200K's own JPEG files: 23 grey values in edges, 39,166 colours in a map of 47 segments."""
    (item,) = data_folder("reference").glob("vc_data-00004-of-00022-7170")
    edges, said = values("png1", next(item.glob("*canny*")).read_bytes())
    assert set(np.unique(edges)) == {0, 255} and said["cleaned"].startswith("23 grey values")
    segments, said = values("labels", next(item.glob("*sam2*")).read_bytes())
    picture = np.asarray(Image.open(next(item.glob("*sam2*"))), int)
    shown = np.asarray(said["palette"])[segments]
    assert len(said["palette"]) < 100 and np.mean(np.abs(shown - picture).max(2) < 16) > 0.85

"""Bytes to pictures and back: the right pixels of files of every kind, and codecs of made kinds."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from graphbuild.images.codecs import CODECS, Encoded, check_image, codec_of
from graphbuild.images.decode import decode_image
from graphbuild.images.node import Node
from tests.images.test_decode import saved

Pixels = NDArray[Any]


def photo(size: tuple[int, int] = (40, 24)) -> Image.Image:
    """A smooth picture without symmetries, so that JPEG is close to it and a rotation shows."""
    y, x = np.mgrid[0 : size[1], 0 : size[0]]
    planes = [x * 255 // size[0], y * 255 // size[1], (x + 2 * y) * 255 // (size[0] + 2 * size[1])]
    return Image.fromarray(np.stack(planes, axis=2).astype(np.uint8))


def _picture(data: bytes) -> Pixels:
    encoded, pixels = check_image(data)
    picture = Node(0, "image", 0, "v0", encoded.data, encoded.format, "source").array()
    assert encoded.data == data, "source files keep their bytes"
    assert np.array_equal(pixels, picture), "ingest and readers see the same pixels"
    assert picture.shape == (encoded.height, encoded.width, 3) and picture.dtype == np.uint8
    return picture


def oriented(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(photo(), "JPEG", quality=98, subsampling=0, exif=exif)


# ---- right pixels ------------------------------------------------------------------------------------------------

_ROTATIONS: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.transpose(1, 0, 2),
    6: lambda p: np.rot90(p, -1),
    7: lambda p: np.rot90(p, 2).transpose(1, 0, 2),
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", _ROTATIONS)
def test_exif_orientation(orientation: int) -> None:
    """Guards against pictures lying on their side, or turned twice."""
    expected = _ROTATIONS[orientation](np.asarray(photo()))
    picture = _picture(oriented(orientation)).astype(int)
    assert picture.shape == expected.shape
    assert np.abs(picture - expected).max() < 12


def test_exif_orientation_of_png() -> None:
    """Guards against orientation being read from JPEG only."""
    exif = Image.Exif()
    exif[0x0112] = 6
    assert np.array_equal(_picture(saved(photo(), "PNG", exif=exif)), np.rot90(np.asarray(photo()), -1))


def test_jpeg_is_what_pillow_sees(photos: Path) -> None:
    """Guards against swapped channels and against another decoder's colours."""
    for path in sorted(photos.glob("*.jpg"))[:6]:
        with Image.open(path) as image:
            expected = np.asarray(image.convert("RGB")).astype(int)
        difference = np.abs(_picture(path.read_bytes()) - expected)
        assert difference.max() <= 3, path.name


@settings(max_examples=150, deadline=None)
@given(
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    mode=st.sampled_from(["RGB", "L"]),
    options=st.fixed_dictionaries(
        {
            "quality": st.integers(1, 100),
            "progressive": st.booleans(),
            "subsampling": st.sampled_from(["4:4:4", "4:2:2", "4:2:0"]),
            "keep_rgb": st.booleans(),
            "restart_marker_blocks": st.sampled_from([0, 1, 3]),
        }
    ),
    orientation=st.sampled_from([0, 0, 1, 3, 6, 9]),
    cut=st.sampled_from([0, 0, 0, 1, 20]),
)
def test_every_jpeg_is_what_opencv_sees(
    size: tuple[int, int], mode: str, options: dict[str, Any], orientation: int, cut: int
) -> None:
    """Guards against readers that see another picture than annotators did, in place or not."""
    if mode == "L":
        options = {**options, "subsampling": -1, "keep_rgb": False}
    if options["keep_rgb"]:
        options = {**options, "subsampling": "4:4:4"}
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    data = saved(photo(size).convert(mode), "JPEG", **options, exif=exif)
    data = data[: len(data) - cut]
    expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    if expected is None:
        return
    node = Node(0, "image", 0, "v0", data, "jpeg", "source")
    room = np.full((size[1], size[0], 3), 77, np.uint8)
    assert np.array_equal(decode_image(data, "jpeg"), expected)
    assert np.array_equal(node.decoded(room), expected)
    assert np.array_equal(node.array(), expected)


@pytest.mark.parametrize(("orientation", "size"), [(1, (40, 24)), (6, None)])
def test_only_upright_photos_are_reduced(orientation: int, size: Any) -> None:
    """Guards against a camera's photos that are shown lying on their side, for their EXIF."""
    node = Node(0, "image", 0, "v0", oriented(orientation), "jpeg", "source")
    assert node.jpeg_size() == size
    reduced = node.at_eighths(3)
    assert reduced is not None and reduced.shape == (9, 15, 3)


def test_cmyk_jpeg() -> None:
    """Guards against inverted or refused CMYK files."""
    data = saved(photo().convert("CMYK"), "JPEG", quality=98, subsampling=0)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert np.abs(_picture(data) - expected).max() <= 1
    assert np.abs(_picture(data) - np.asarray(photo()).astype(int)).max() < 16


def test_grey_16_bit_png() -> None:
    """Guards against 16-bit pictures that come out white (clipped at 255) or as the low byte's noise."""
    values = np.linspace(0, 65535, 40 * 24).reshape(24, 40).astype(np.uint16)
    picture = _picture(saved(Image.fromarray(values), "PNG"))
    expected = np.round(values / 65535 * 255)
    assert np.abs(picture[..., 0] - expected).max() <= 0.5
    assert (picture == picture[..., :1]).all()


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_modes(mode: str, form: str) -> None:
    """Guards against a mode whose pixels come out other than Pillow converts them, alpha over white."""
    image = photo().convert(mode)
    if mode in ("LA", "RGBA"):
        image.putalpha(Image.fromarray(np.arange(40 * 24, dtype=np.uint32).astype(np.uint8).reshape(24, 40)))
    rgba = np.asarray(image.convert("RGBA")).astype(float)
    alpha = rgba[..., 3:] / 255
    expected = rgba[..., :3] * alpha + 255 * (1 - alpha)
    assert np.abs(_picture(saved(image, form)) - expected).max() <= 1


def test_palette_with_transparency() -> None:
    """Guards against a transparent palette entry showing the colour behind it."""
    image = Image.new("P", (4, 2), 0)
    image.putpalette([200, 0, 0, 0, 200, 0])
    image.putpixel((1, 0), 1)
    picture = _picture(saved(image, "PNG", transparency=0))
    assert picture[0, 0].tolist() == [255, 255, 255] and picture[0, 1].tolist() == [0, 200, 0]


def test_animated_gif_is_its_first_frame() -> None:
    """Guards against the last frame, or a composite, of an animation."""
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue", "lime")]
    data = saved(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=40)
    assert (_picture(data) == (255, 0, 0)).all()


@pytest.mark.parametrize("size", [(1, 1), (20000, 1), (1, 20000)])
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_extreme_sizes(size: tuple[int, int], form: str) -> None:
    """Guards against code that divides by, or crops to, a side of one pixel."""
    picture = _picture(saved(Image.new("RGB", size, (10, 200, 30)), form, quality=95))
    assert picture.shape[:2] == size[::-1]
    assert np.abs(picture.astype(int) - (10, 200, 30)).max() < 6


# ---- codecs of made kinds ----------------------------------------------------------------------------------------


def _round_trip(codec: str, value: Any) -> tuple[Encoded, Any]:
    encoded = CODECS[codec].encode(value)
    return encoded, CODECS[codec].values(encoded.data, encoded.format)


def test_lossless_codecs() -> None:
    """Guards against a mask or label map that comes back with other values."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 256, (33, 47), np.uint8)
    for codec in ("png8", "labels"):
        assert np.array_equal(_round_trip(codec, labels)[1], labels)
    mask = rng.random((33, 47)) < 0.5
    encoded, values = _round_trip("png1", mask)
    assert np.array_equal(values, mask * 255) and Image.open(io.BytesIO(encoded.data)).mode == "1"
    picture = rng.integers(0, 256, (33, 47, 3), np.uint8)
    assert np.array_equal(_round_trip("png", picture)[1], picture)


@pytest.mark.parametrize("codec", ["jpeg", "jpeg444"])
def test_lossy_codecs_keep_colours(codec: str) -> None:
    """Guards against red and blue swapped on the way in or out."""
    picture = np.asarray(photo((64, 48)))
    encoded, values = _round_trip(codec, picture)
    assert np.abs(values.astype(int) - picture).max() < 16
    assert np.abs(np.asarray(Image.open(io.BytesIO(encoded.data))).astype(int) - picture).max() < 16
    assert (encoded.width, encoded.height) == (64, 48)


def test_labels_are_shown_in_their_palette() -> None:
    """Guards against label maps that look black: the picture uses the recorded palette, the values stay labels."""
    encoded = CODECS["labels"].encode(np.array([[0, 1], [2, 1]], np.uint8))
    palette = [[0, 0, 0], [255, 0, 0], [0, 0, 255]]
    node = Node(0, "semantic", 0, "v0", encoded.data, encoded.format, "labels", {"palette": palette})
    assert node.array()[:, 1].tolist() == [[255, 0, 0], [255, 0, 0]]
    assert node.values().tolist() == [[0, 1], [2, 1]]


def test_text_and_json() -> None:
    """Guards against text that is not UTF-8 on disk, or JSON whose bytes depend on key order."""
    assert _round_trip("text", "Grüße, 猫")[1] == "Grüße, 猫"
    first, values = _round_trip("json", {"b": [1, 2.5], "a": "猫"})
    assert values == {"b": [1, 2.5], "a": "猫"} == json.loads(first.data)
    assert first.data == CODECS["json"].encode({"a": "猫", "b": [1, 2.5]}).data
    with pytest.raises(ValueError, match="not a picture"):
        Node(0, "places", 0, "v0", first.data, "json", "json").array()


def test_pose_and_boxes_are_stored_as_numbers_and_shown_as_pictures() -> None:
    """Guards against a JSON kind that cannot be a cell, and a row that does not say how large its picture is."""
    boxes = {"width": 40, "height": 30, "boxes": [{"label": "猫", "box": [4, 4, 20.5, 20], "colour": [255, 0, 0]}]}
    pose = {"width": 40, "height": 30, "people": [{"keypoints": [[20, 15, 0.5], *[None] * 17]}]}
    for name, document in {"boxes": boxes, "pose": pose}.items():
        encoded, values = _round_trip(name, document)
        assert (encoded.format, encoded.width, encoded.height, values) == ("json", 40, 30, document)
        picture = Node(0, name, 0, "v0", encoded.data, "json", name).array()
        assert picture.shape == (30, 40, 3) and picture.dtype == np.uint8 and picture.max() == 255


@pytest.mark.parametrize("codec", ["pose", "boxes", "rays"])
def test_a_document_that_cannot_be_drawn_is_refused(codec: str) -> None:
    with pytest.raises(ValueError, match=r"height: (missing|None)"):
        CODECS[codec].encode({"width": 40, "people": [], "boxes": []})


def test_a_picture_cannot_be_written_to() -> None:
    """Guards against one reader changing the pixels another one gets from the same node."""
    encoded = CODECS["png8"].encode(np.zeros((4, 4), np.uint8))
    node = Node(0, "depth", 0, "v0", encoded.data, encoded.format, "png8")
    with pytest.raises(ValueError, match="read-only"):
        node.array()[0, 0] = 1


def test_a_node_can_be_printed() -> None:
    """Guards against megabytes of bytes on the screen of whoever looks at a node."""
    node = Node(0, "image", 0, "v0", bytes(10**6), "jpeg", "source", edge={"detail": "x" * 10**6})
    assert len(repr(node)) < 200


def test_a_graph_cannot_name_code_as_its_codec() -> None:
    """Guards against a graph from anywhere whose lineage says which module is imported when its nodes are read."""
    with pytest.raises(ValueError, match="codec 'os:system': allowed: source"):
        codec_of("os:system")

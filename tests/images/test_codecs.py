"""Bytes to pictures and back, above all for files that nobody checked before."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from graphbuild.contracts import MAX_PIXELS
from graphbuild.errors import MissingNode, UnusableImage
from graphbuild.images.codecs import CODECS, Encoded, check_image, codec_of
from graphbuild.images.decode import decode_image
from graphbuild.images.node import Node
from graphbuild.store.graph import Graph
from tests.support.annotators import build, complete

Pixels = NDArray[Any]


def _saved(image: Image.Image, form: str, **options: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, form, **options)
    return sink.getvalue()


def _photo(size: tuple[int, int] = (40, 24)) -> Image.Image:
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


def _oriented(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return _saved(_photo(), "JPEG", quality=98, subsampling=0, exif=exif)


def _bomb(width: int, height: int) -> bytes:
    """A PNG of a few hundred bytes whose header claims width x height."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(100_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


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
    expected = _ROTATIONS[orientation](np.asarray(_photo()))
    picture = _picture(_oriented(orientation)).astype(int)
    assert picture.shape == expected.shape
    assert np.abs(picture - expected).max() < 12


def test_exif_orientation_of_png() -> None:
    """Guards against orientation being read from JPEG only."""
    exif = Image.Exif()
    exif[0x0112] = 6
    assert np.array_equal(_picture(_saved(_photo(), "PNG", exif=exif)), np.rot90(np.asarray(_photo()), -1))


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
    data = _saved(_photo(size).convert(mode), "JPEG", **options, exif=exif)
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
    node = Node(0, "image", 0, "v0", _oriented(orientation), "jpeg", "source")
    assert node.jpeg_size() == size
    reduced = node.at_eighths(3)
    assert reduced is not None and reduced.shape == (9, 15, 3)


def test_cmyk_jpeg() -> None:
    """Guards against inverted or refused CMYK files."""
    data = _saved(_photo().convert("CMYK"), "JPEG", quality=98, subsampling=0)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert np.abs(_picture(data) - expected).max() <= 1
    assert np.abs(_picture(data) - np.asarray(_photo()).astype(int)).max() < 16


def test_grey_16_bit_png() -> None:
    """Guards against 16-bit pictures that come out white (clipped at 255) or as the low byte's noise."""
    values = np.linspace(0, 65535, 40 * 24).reshape(24, 40).astype(np.uint16)
    picture = _picture(_saved(Image.fromarray(values), "PNG"))
    expected = np.round(values / 65535 * 255)
    assert np.abs(picture[..., 0] - expected).max() <= 0.5
    assert (picture == picture[..., :1]).all()


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_modes(mode: str, form: str) -> None:
    """Guards against a mode whose pixels come out other than Pillow converts them, alpha over white."""
    image = _photo().convert(mode)
    if mode in ("LA", "RGBA"):
        image.putalpha(Image.fromarray(np.arange(40 * 24, dtype=np.uint32).astype(np.uint8).reshape(24, 40)))
    rgba = np.asarray(image.convert("RGBA")).astype(float)
    alpha = rgba[..., 3:] / 255
    expected = rgba[..., :3] * alpha + 255 * (1 - alpha)
    assert np.abs(_picture(_saved(image, form)) - expected).max() <= 1


def test_palette_with_transparency() -> None:
    """Guards against a transparent palette entry showing the colour behind it."""
    image = Image.new("P", (4, 2), 0)
    image.putpalette([200, 0, 0, 0, 200, 0])
    image.putpixel((1, 0), 1)
    picture = _picture(_saved(image, "PNG", transparency=0))
    assert picture[0, 0].tolist() == [255, 255, 255] and picture[0, 1].tolist() == [0, 200, 0]


def test_animated_gif_is_its_first_frame() -> None:
    """Guards against the last frame, or a composite, of an animation."""
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue", "lime")]
    data = _saved(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=40)
    assert (_picture(data) == (255, 0, 0)).all()


@pytest.mark.parametrize("size", [(1, 1), (20000, 1), (1, 20000)])
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_extreme_sizes(size: tuple[int, int], form: str) -> None:
    """Guards against code that divides by, or crops to, a side of one pixel."""
    picture = _picture(_saved(Image.new("RGB", size, (10, 200, 30)), form, quality=95))
    assert picture.shape[:2] == size[::-1]
    assert np.abs(picture.astype(int) - (10, 200, 30)).max() < 6


# ---- refused with a reason ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: b"", "empty_file"),
        (lambda: b"This is not an image, whatever its name says.", "undecodable"),
        (lambda: _saved(_photo((160, 120)), "PNG")[:900], "undecodable"),
        (lambda: _saved(_photo((160, 120)), "JPEG")[:1200], "undecodable"),
        (lambda: _saved(_photo((160, 120)), "JPEG")[:300], "undecodable"),
        (lambda: _bomb(50_000, 50_000), "too_large"),
        (lambda: _bomb(MAX_PIXELS // 5_000 + 1, 5_000), "too_large"),
        (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n%%EOF\n", "undecodable"),
        (lambda: _saved(Image.fromarray(np.full((4, 4), 0.5, np.float32)), "TIFF"), "unsupported_mode"),
    ],
    ids=["empty", "text", "png_cut", "jpeg_cut", "jpeg_header_only", "bomb", "just_too_large", "postscript", "float"],
)
def test_refused(make: Callable[[], bytes], reason: str) -> None:
    """Guards against a crash, a half-grey picture, or gigabytes of memory for a bad file."""
    with pytest.raises(UnusableImage) as caught:
        check_image(make())
    assert caught.value.reason == reason


_SEEDS = {
    "JPEG": _saved(_photo(), "JPEG"),
    "PNG": _saved(_photo(), "PNG"),
    "GIF": _saved(_photo(), "GIF"),
    "WEBP": _saved(_photo(), "WEBP"),
    "TIFF": _saved(_photo(), "TIFF", compression="tiff_lzw"),
    "BMP": _saved(_photo(), "BMP"),
    "PPM": _saved(_photo(), "PPM"),
    "JPEG2000": _saved(_photo(), "JPEG2000"),
    "EXIF": _oriented(6),
    "PALETTE": _saved(_photo().convert("P"), "PNG", transparency=3),
}


REASONS = {None, "empty_file", "undecodable", "damaged", "too_many_scans", "too_large", "unsupported_mode"}


def _reason(data: bytes) -> str | None:
    try:
        check_image(data)
    except UnusableImage as error:
        return error.reason
    return None


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("name", _SEEDS)
@settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_damaged_files_never_crash(name: str, data: st.DataObject) -> None:
    """Guards against an exception other than UnusableImage, which would take the whole unit down."""
    damaged = bytearray(_SEEDS[name])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        damaged[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(damaged)))
    for candidate in (bytes(damaged), bytes(damaged[:cut])):
        assert _reason(candidate) in REASONS


def test_every_bad_file_is_an_item(tmp_path: Path) -> None:
    """Guards against a file that stops the run, or that vanishes: each has an image edge and a row per annotator."""
    frames = [Image.new("RGB", (32, 24), colour) for colour in ("red", "blue")]
    cmyk = _saved(_photo((64, 48)).convert("CMYK"), "JPEG")
    files = {
        "zero.jpg": (b"", "empty_file"),
        "cut.jpg": (_saved(_photo((160, 120)), "JPEG")[:1200], "undecodable"),
        "text.jpg": (b"not an image", "undecodable"),
        "bomb.png": (_bomb(50_000, 50_000), "too_large"),
        "cmyk.jpg": (cmyk, None),
        "sixteen.png": (_saved(Image.fromarray(np.arange(64 * 48, dtype=np.uint16).reshape(48, 64) * 20), "PNG"), None),
        "palette.png": (_saved(_photo((64, 48)).convert("P"), "PNG"), None),
        "alpha.png": (_saved(_photo((64, 48)).convert("RGBA"), "PNG"), None),
        "turned.jpg": (_oriented(6), None),
        "animated.gif": (_saved(frames[0], "GIF", save_all=True, append_images=frames[1:]), None),
        "dot.png": (_saved(Image.new("RGB", (1, 1), "red"), "PNG"), None),
        "line.png": (_saved(Image.new("RGB", (20_000, 1), "red"), "PNG"), None),
        "wrong_suffix.png": (_saved(_photo((64, 48)), "JPEG"), None),
    }
    (tmp_path / "photos").mkdir()
    for name, (body, _) in files.items():
        (tmp_path / "photos" / name).write_bytes(body)
    complete(build(tmp_path / "photos", tmp_path / "g", ["canny", "lsd", "grabcut"]))
    graph = Graph.open(tmp_path / "g")
    keys = graph.items().column("key").to_pylist()
    assert keys == sorted(files)
    for kind in ("image", "canny", "lines", "foreground_mask"):
        assert graph.edges(kind).num_rows == len(files)
    for item_ix, key in enumerate(keys):
        reason = files[key][1]
        row = graph.edges("image").slice(item_ix, 1).to_pylist()[0]
        assert (row["status"], row["reason"]) == (("ok", None) if reason is None else ("failed", reason)), key
        if reason is None:
            assert graph.read(item_ix, "image").bytes == files[key][0]
            shape = graph.read(item_ix, "image").array().shape
            assert graph.read(item_ix, "canny").array().shape == shape
            (mask,) = graph.edges("foreground_mask").slice(item_ix, 1).to_pylist()
            assert (mask["reason"] or (mask["height"], mask["width"])) in ("no_foreground", shape[:2])
        else:
            with pytest.raises(MissingNode, match=reason):
                graph.read(item_ix, "image")
            with pytest.raises(MissingNode, match="parent_failed"):
                graph.read(item_ix, "canny")
    assert {row["status"] for row in graph.edges("lines").to_pylist()} <= {"ok", "skipped"}


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
    picture = np.asarray(_photo((64, 48)))
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

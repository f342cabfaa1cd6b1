"""Files that nobody checked before: refused with a reason, never a crash, and an item of the graph all the same."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from graphbuild.contracts import MAX_PIXELS
from graphbuild.errors import MissingNode, UnusableImage
from graphbuild.images.codecs import check_image
from graphbuild.store.graph import Graph
from tests.images.test_codecs import oriented, photo
from tests.images.test_decode import refusal, saved
from tests.support.annotators import build, complete


def _bomb(width: int, height: int) -> bytes:
    """A PNG of a few hundred bytes whose header claims width x height."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(100_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: b"", "empty_file"),
        (lambda: b"This is not an image, whatever its name says.", "undecodable"),
        (lambda: saved(photo((160, 120)), "PNG")[:900], "undecodable"),
        (lambda: saved(photo((160, 120)), "JPEG")[:1200], "undecodable"),
        (lambda: saved(photo((160, 120)), "JPEG")[:300], "undecodable"),
        (lambda: _bomb(50_000, 50_000), "too_large"),
        (lambda: _bomb(MAX_PIXELS // 5_000 + 1, 5_000), "too_large"),
        (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n%%EOF\n", "undecodable"),
        (lambda: saved(Image.fromarray(np.full((4, 4), 0.5, np.float32)), "TIFF"), "unsupported_mode"),
    ],
    ids=["empty", "text", "png_cut", "jpeg_cut", "jpeg_header_only", "bomb", "just_too_large", "postscript", "float"],
)
def test_refused(make: Callable[[], bytes], reason: str) -> None:
    """Guards against a crash, a half-grey picture, or gigabytes of memory for a bad file."""
    with pytest.raises(UnusableImage) as caught:
        check_image(make())
    assert caught.value.reason == reason


_SEEDS = {
    "JPEG": saved(photo(), "JPEG"),
    "PNG": saved(photo(), "PNG"),
    "GIF": saved(photo(), "GIF"),
    "WEBP": saved(photo(), "WEBP"),
    "TIFF": saved(photo(), "TIFF", compression="tiff_lzw"),
    "BMP": saved(photo(), "BMP"),
    "PPM": saved(photo(), "PPM"),
    "JPEG2000": saved(photo(), "JPEG2000"),
    "EXIF": oriented(6),
    "PALETTE": saved(photo().convert("P"), "PNG", transparency=3),
}


REASONS = {None, "empty_file", "undecodable", "damaged", "too_many_scans", "too_large", "unsupported_mode"}


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
        assert refusal(candidate) in REASONS


def test_every_bad_file_is_an_item(tmp_path: Path) -> None:
    """Guards against a file that stops the run, or that vanishes: each has an image edge and a row per annotator."""
    frames = [Image.new("RGB", (32, 24), colour) for colour in ("red", "blue")]
    cmyk = saved(photo((64, 48)).convert("CMYK"), "JPEG")
    files = {
        "zero.jpg": (b"", "empty_file"),
        "cut.jpg": (saved(photo((160, 120)), "JPEG")[:1200], "undecodable"),
        "text.jpg": (b"not an image", "undecodable"),
        "bomb.png": (_bomb(50_000, 50_000), "too_large"),
        "cmyk.jpg": (cmyk, None),
        "sixteen.png": (saved(Image.fromarray(np.arange(64 * 48, dtype=np.uint16).reshape(48, 64) * 20), "PNG"), None),
        "palette.png": (saved(photo((64, 48)).convert("P"), "PNG"), None),
        "alpha.png": (saved(photo((64, 48)).convert("RGBA"), "PNG"), None),
        "turned.jpg": (oriented(6), None),
        "animated.gif": (saved(frames[0], "GIF", save_all=True, append_images=frames[1:]), None),
        "dot.png": (saved(Image.new("RGB", (1, 1), "red"), "PNG"), None),
        "line.png": (saved(Image.new("RGB", (20_000, 1), "red"), "PNG"), None),
        "wrong_suffix.png": (saved(photo((64, 48)), "JPEG"), None),
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

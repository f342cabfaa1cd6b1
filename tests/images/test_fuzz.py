"""Mutated files of 60 kinds: each is decoded or refused; none raises anything else, hangs or kills the process.

GRAPHBUILD_LONG=1 tries 100,000 instead of 5,000 and prints what became of them (`pytest -s`).
"""

from __future__ import annotations

import io
import os
import sys
import time
from collections import Counter
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from graphbuild.contracts import FINAL_REASONS
from graphbuild.errors import UnusableImage
from graphbuild.images.codecs import check_image
from graphbuild.images.node import Node
from tests.support import icc

FILES = 100_000 if os.environ.get("GRAPHBUILD_LONG") else 5_000
GROUPS = 10

_EXIF = Image.Exif()
_EXIF[0x0112] = 6
_XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


def _photo(width: int = 48, height: int = 40) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    noise = np.random.default_rng(0).integers(0, 20, (height, width, 3))
    return Image.fromarray((np.stack([x * 5, y * 6, (x + y) * 2], 2) + noise).clip(0, 255).astype(np.uint8))


def _saved(image: Image.Image, form: str, options: dict[str, Any]) -> bytes:
    sink = io.BytesIO()
    image.save(sink, form, **options)
    return sink.getvalue()


def _seeds() -> dict[str, bytes]:
    photo = _photo()
    frames = {"save_all": True, "append_images": [photo.rotate(90), photo]}
    turned, p3 = {"exif": _EXIF}, {"icc_profile": icc.rgb_profile(*icc.DISPLAY_P3)}
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    every: dict[str, list[tuple[str, dict[str, Any]]]] = {
        "JPEG": [
            ("RGB", {}), ("L", {}), ("CMYK", {}), ("RGB", {"progressive": True}), ("L", {"progressive": True}),
            ("RGB", {"subsampling": 0}), ("RGB", {"subsampling": 1}), ("RGB", {"restart_marker_blocks": 2}),
            ("RGB", {"keep_rgb": True}), ("RGB", turned), ("RGB", {"xmp": _XMP}), ("RGB", p3),
            ("RGB", {"icc_profile": srgb}), ("CMYK", {"icc_profile": icc.cmyk_profile()}),
            ("L", {"icc_profile": icc.grey_profile(1.8)}), ("RGB", {"comment": b"c" * 90, "optimize": True}),
            ("RGB", {"quality": 5}), ("RGB", {"progressive": True, **turned, **p3}),
        ],
        "PNG": [
            ("RGB", {}), ("RGBA", {}), ("L", {}), ("LA", {}), ("P", {}), ("1", {}), ("I;16", {}), ("RGB", turned),
            ("RGB", p3), ("P", {"transparency": 3}), ("RGB", frames),
        ],
        "WEBP": [
            ("RGB", {}), ("RGBA", {}), ("RGB", {"lossless": True}), ("RGB", turned), ("RGB", p3), ("RGB", frames),
        ],
        "TIFF": [
            ("RGB", {}), ("RGB", {"compression": "tiff_lzw"}), ("RGB", {"compression": "jpeg"}),
            ("RGB", {"compression": "tiff_adobe_deflate"}), ("1", {"compression": "group4"}),
            ("L", {"compression": "packbits"}), ("CMYK", {}), ("I;16", {}), ("F", {}), ("P", {}), ("RGB", turned),
            ("RGB", frames),
        ],
        "GIF": [("P", {}), ("L", {}), ("P", frames), ("P", {"transparency": 1})],
        "BMP": [("RGB", {}), ("P", {}), ("1", {})],
        "PPM": [("RGB", {}), ("L", {}), ("1", {})],
        "JPEG2000": [("RGB", {}), ("L", {}), ("RGBA", {})],
        "AVIF": [("RGB", {}), ("RGBA", {}), ("RGB", {**turned, **p3})],
        "MPO": [("RGB", frames)],
    }  # fmt: skip
    return {
        f"{form} {mode} {' '.join(options)} {options.get('compression', '')}".strip(): _saved(
            _in_mode(photo, mode), form, options
        )
        for form, variants in every.items()
        for mode, options in variants
    }


def _in_mode(photo: Image.Image, mode: str) -> Image.Image:
    if mode == "I;16":
        return Image.fromarray(np.asarray(photo.convert("L"), np.uint16) * 257)
    return photo.convert(mode)


def _mutated(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """One to four changes: bits, bytes, numbers at their limits, blocks lost, doubled, emptied or of another file."""
    for _ in range(int(rng.integers(1, 5))):
        at, length = int(rng.integers(len(data) + 1)), int(rng.integers(1, 65))
        block, start = data[at : at + length], int(rng.integers(len(other)))
        bit = bytes(byte ^ 1 << int(rng.integers(8)) for byte in block[:1])
        number = int(rng.choice([0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF]))
        value = number.to_bytes(4, "big")[-int(rng.choice([1, 2, 4])) :]
        changes = (
            (bit, 1), (rng.bytes(length), length), (b"", length), (block * 2, length), (bytes(length), length),
            (b"", len(data)), (value, len(value)), (value[::-1], len(value)), (other[start : start + length], length),
            (b"\xff" * length, length),
        )  # fmt: skip
        new, replaced = changes[int(rng.integers(len(changes)))]
        data = data[:at] + new + data[at + replaced :]
    return data


SEEDS = _seeds()


def test_there_are_sixty_kinds_and_all_are_pictures() -> None:
    """Guards against a fuzz run over files that nobody can read to begin with."""
    assert len(SEEDS) >= 60
    for name, data in SEEDS.items():
        if not name.startswith("TIFF F"):
            assert check_image(data)[0].width in (48, 40), name


@pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore::Warning:PIL")
@pytest.mark.parametrize("group", range(GROUPS))
def test_every_mutated_file_is_a_row(group: int) -> None:
    """Guards against an exception that leaves the decoder, an ok that other readers refuse, sizes that disagree."""
    names, became, slowest = list(SEEDS), Counter[str](), (0.0, "")
    for number in range(group, FILES, GROUPS):
        rng = np.random.default_rng((20, number))
        name = names[number % len(names)]
        data = _mutated(SEEDS[name], SEEDS[names[int(rng.integers(len(names)))]], rng)
        start = time.perf_counter()
        became[_outcome(data, f"{number}: {name}")] += 1
        slowest = max(slowest, (time.perf_counter() - start, f"{number}: {name}"))
    assert became["ok"] > 0 and became["undecodable"] > 0 and set(became) <= FINAL_REASONS | {"ok"}
    sys.stderr.write(f"{group}: {dict(became)}, slowest {slowest[0]:.1f} s ({slowest[1]})\n")


def _outcome(data: bytes, name: str) -> str:
    try:
        encoded, _ = check_image(data, grey=True)
    except UnusableImage as error:
        return error.reason
    picture = Node(0, "image", 0, "v0", data, encoded.format, "source", encoded.attrs).array()
    assert picture.shape == (encoded.height, encoded.width, 3), name
    with Image.open(io.BytesIO(data)) as image:
        image.load()
    return "ok"

"""What a file's pixels mean, and what is refused: orientation, colours, damage, and files made to harm a reader."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps

from graphbuild.errors import UnusableImage
from graphbuild.images.codecs import check_image
from graphbuild.images.decode import suffixes
from graphbuild.images.node import Node
from tests.support import icc

Pixels = NDArray[Any]


def photo(width: int = 128, height: int = 96) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    planes = [x * 255 // width, y * 255 // height, 255 - (x + y) * 255 // (width + height)]
    return Image.fromarray(np.stack(planes, 2).astype(np.uint8))


def saved(image: Image.Image, form: str, **options: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, form, **options)
    return sink.getvalue()


def node_of(data: bytes, *, convert: bool = True) -> Node:
    encoded, _ = check_image(data, grey=True, convert=convert)
    return Node(0, "image", 0, "v0", data, encoded.format, "source", encoded.attrs)


def refusal(data: bytes) -> str | None:
    try:
        check_image(data)
    except UnusableImage as error:
        return error.reason
    return None


# ---- orientation -------------------------------------------------------------------------------------------------


def ifd(*entries: tuple[int, int, int, bytes], extra: bytes = b"") -> bytes:
    body = b"".join(struct.pack("<HHI", *entry[:3]) + entry[3].ljust(4, b"\0") for entry in entries)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + body + bytes(4) + extra


SHORT = 3
SIX = struct.pack("<H", 6)
XMP = b'http://ns.adobe.com/xap/1.0/\0<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'

SEGMENTS = {
    "none": [],
    "short": [ifd((0x112, SHORT, 1, SIX))],
    "count 0": [ifd((0x112, SHORT, 0, SIX))],
    "count 2": [ifd((0x112, SHORT, 2, SIX + SIX))],
    "byte": [ifd((0x112, 1, 1, b"\6"))],
    "long": [ifd((0x112, 4, 1, struct.pack("<I", 6)))],
    "undefined": [ifd((0x112, 7, 1, b"\6"))],
    "rational": [ifd((0x112, 5, 1, struct.pack("<I", 26)), extra=struct.pack("<II", 6, 1))],
    "twice in one": [ifd((0x112, SHORT, 1, b"\1"), (0x112, SHORT, 1, SIX))],
    "empty, then 6": [b"Exif\0\0", ifd((0x112, SHORT, 1, SIX))],
    "6, then 1": [ifd((0x112, SHORT, 1, SIX)), ifd((0x112, SHORT, 1, b"\1"))],
    "unusual header": [b"Exif\0\xff" + ifd((0x112, SHORT, 1, SIX))[6:]],
    "XMP only": [XMP],
    "nine": [ifd((0x112, SHORT, 1, b"\x09"))],
    "nonsense": [b"Exif\0\0II*\0\xff\xff\xff\xff"],
}


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("name", SEGMENTS)
def test_edges_pixels_and_datasets_agree_on_the_orientation(name: str) -> None:
    """Guards against a second reader of EXIF: a picture that is upright in one place and lies down in another."""
    plain = saved(photo(), "JPEG", quality=95)
    segments = (b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body for body in SEGMENTS[name])
    data = plain[:2] + b"".join(segments) + plain[2:]
    with Image.open(io.BytesIO(data)) as image:
        shown = np.asarray(ImageOps.exif_transpose(image).convert("RGB")).astype(int)
    encoded, pixels = check_image(data)
    grey, luma = check_image(data, grey=True)
    node = node_of(data)
    room = np.zeros((96, 128, 3), np.uint8)
    assert (encoded.width, encoded.height) == (grey.width, grey.height) == shown.shape[1::-1]
    assert luma.shape == shown.shape[:2]
    for picture in (pixels, node.array(), node_of(data).decoded(room)):
        assert picture.shape == shown.shape and np.abs(picture - shown).max() <= 3
    assert (node.jpeg_size() is None) == (shown.shape[1] == 96)


BAD_EXIF = (
    b"II*\0\x08\0\0\0" + struct.pack("<H", 2) + struct.pack("<HHIHH", 0x112, 3, 1, 6, 0)
    + struct.pack("<HHII", 0x11A, 10, 1, 38) + bytes(4) + struct.pack("<ii", -1, 0)
)  # fmt: skip


def with_chunk(png: bytes, name: bytes, body: bytes) -> bytes:
    chunk = struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    return png[:33] + chunk + png[33:]


@pytest.mark.parametrize(
    "data",
    [
        with_chunk(saved(photo(), "PNG"), b"eXIf", BAD_EXIF),
        saved(photo().convert("CMYK"), "JPEG", exif=b"Exif\0\0" + BAD_EXIF),
        saved(photo(), "JPEG", exif=b"Exif\0\0" + BAD_EXIF),
        saved(photo(), "WEBP", exif=b"Exif\0\0" + BAD_EXIF, lossless=True),
    ],
    ids=["png", "cmyk", "jpeg", "webp"],
)
def test_a_bad_exif_block_is_not_a_bad_picture(data: bytes) -> None:
    """Guards against a photo, and its whole shard, lost for a resolution of -1/0."""
    assert check_image(data)[1].shape == (128, 96, 3)


# ---- colours -----------------------------------------------------------------------------------------------------

SRGB = ImageCms.createProfile("sRGB")


def in_profile(image: Image.Image, profile: bytes, mode: str = "RGB") -> Image.Image:
    there = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    converted = ImageCms.profileToProfile(image, SRGB, there, outputMode=mode, renderingIntent=1)
    assert converted is not None
    return converted


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize(("primaries", "gamma"), [icc.DISPLAY_P3, icc.ADOBE_RGB, icc.PROPHOTO])
def test_colours_are_those_of_the_profile(primaries: Any, gamma: float, form: str) -> None:
    """Guards against pale skin and grass: wide-gamut numbers taken for sRGB."""
    profile = icc.rgb_profile(primaries, gamma, "wide")
    options = {"JPEG": {"quality": 98, "subsampling": 0}, "WEBP": {"lossless": True}, "AVIF": {"quality": 98}}
    image = photo()
    data = saved(in_profile(image, profile), form, icc_profile=profile, **options.get(form, {}))
    encoded, pixels = check_image(data)
    assert encoded.data == data and encoded.attrs == {"profile": "wide", "colours": "srgb"}
    assert np.abs(pixels.astype(int) - np.asarray(image)).mean() < 2.5
    assert np.array_equal(node_of(data).array(), pixels)
    left = node_of(data, convert=False)
    assert left.attrs == {"profile": "wide", "colours": "stored"}
    assert np.abs(left.array().astype(int) - np.asarray(image)).mean() > 3


def test_every_way_to_decode_a_jpeg_converts_its_colours() -> None:
    """Guards against fast paths of the loader that skip the profile."""
    profile = icc.rgb_profile(*icc.PROPHOTO)
    wide = saved(in_profile(photo(), profile), "JPEG", icc_profile=profile, quality=98, subsampling=0)
    whole = node_of(wide).array().astype(int)
    room = np.zeros((96, 128, 3), np.uint8)
    in_place, half = node_of(wide).decoded(room), node_of(wide).at_eighths(4)
    assert in_place is room and np.array_equal(in_place, whole)
    assert half is not None and half.shape == (48, 64, 3)
    assert np.abs(half - whole.reshape(48, 2, 64, 2, 3).mean((1, 3))).mean() < 2
    assert node_of(wide).jpeg_size() == (128, 96)


def test_srgb_by_any_name_is_left_alone() -> None:
    """Guards against pixels that move by a level, and time lost, for the profile that most files have."""
    profile = ImageCms.ImageCmsProfile(SRGB).tobytes()
    for form in ("PNG", "JPEG"):
        tagged, plain = (check_image(saved(photo(), form, **extra)) for extra in ({"icc_profile": profile}, {}))
        assert np.array_equal(tagged[1], plain[1]) and tagged[0].attrs == {}


def test_profiles_of_grey_and_cmyk() -> None:
    """Guards against prints that come out neon, and greys that come out too dark."""
    inks = Image.new("CMYK", (8, 8), (0, 0, 0, 255))
    inks.paste((255, 0, 0, 0), (0, 0, 8, 4))
    for form in ("TIFF", "JPEG"):
        encoded, pixels = check_image(saved(inks, form, icc_profile=icc.cmyk_profile("inks")))
        assert encoded.attrs["profile"] == "inks"
        assert np.abs(pixels[1, 1].astype(int) - 171).max() < 8 and pixels[7, 7].max() < 8  # L* = 70
    grey = Image.new("L", (8, 8), 128)
    for form, data in {form: saved(grey, form, icc_profile=icc.grey_profile(1.0)) for form in ("PNG", "JPEG")}.items():
        assert np.abs(check_image(data)[1].astype(int) - 188).max() <= 3, form  # half the light


@pytest.mark.parametrize("profile", [b"not a profile", icc.cmyk_profile(), icc.grey_profile(1.0)])
def test_a_profile_that_does_not_fit_is_ignored(profile: bytes) -> None:
    encoded, pixels = check_image(saved(photo(), "PNG", icc_profile=profile))
    assert np.array_equal(pixels, np.asarray(photo()))
    assert encoded.attrs == {"profile": "unusable", "colours": "stored"}


def test_transparent_pictures_are_converted_under_their_alpha() -> None:
    """Guards against a white background tinted by the profile of the subject."""
    profile = icc.rgb_profile(*icc.PROPHOTO)
    image = in_profile(photo(), profile)
    image.putalpha(Image.new("L", image.size, 0))
    assert (check_image(saved(image, "PNG", icc_profile=profile))[1] == 255).all()


# ---- damage ------------------------------------------------------------------------------------------------------


def noisy() -> bytes:
    r = np.random.default_rng(1)
    small = Image.fromarray(r.integers(0, 255, (24, 32, 3), dtype=np.uint8)).resize((640, 480))
    return saved(
        Image.fromarray((np.asarray(small, int) + r.integers(-12, 12, (480, 640, 3))).clip(0, 255).astype(np.uint8)),
        "JPEG",
        quality=90,
    )


@pytest.mark.parametrize("block", [bytes(4096), bytes(np.random.default_rng(0).integers(0, 256, 4096, np.uint8)), b""])
def test_a_damaged_jpeg_is_refused(block: bytes) -> None:
    """Guards against pictures of which a third is wrong, stored as good ones."""
    good = noisy()
    at = len(good) // 3
    assert refusal(good) is None
    assert refusal(good[:at] + block + good[at + 4096 :]) in ("damaged", "undecodable")


@pytest.mark.parametrize("cut", [1, 2, 20, 5000])
def test_what_pillow_cannot_read_is_never_ok(cut: int) -> None:
    """Guards against a graph that `datasets` cannot iterate over."""
    data = noisy()[:-cut]
    with pytest.raises(OSError, match="truncated"), Image.open(io.BytesIO(data)) as image:
        image.load()
    assert refusal(data) == "undecodable"


def test_harmless_oddities_of_jpegs_are_no_damage() -> None:
    """Guards against good photos lost: bytes after the end, an unusual sampling, two pictures in one file."""
    assert refusal(noisy() + b"trailer" * 1000) is None
    image = photo(64, 64)
    unusual = bytearray(saved(image, "JPEG", subsampling=0, quality=95))
    mpo = saved(image, "MPO", save_all=True, append_images=[image], quality=95)
    frame = unusual.index(b"\xff\xc0")
    assert unusual[frame + 11] == 0x11
    for data in (bytes(unusual), mpo):
        assert refusal(data) is None
        assert np.abs(node_of(data).array().astype(int) - np.asarray(image)).mean() < 8


def scans(count: int, side: int = 96) -> bytes:
    """A progressive JPEG whose last scan is repeated."""
    data = saved(Image.new("RGB", (side, side), "red"), "JPEG", progressive=True, quality=50)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * count + data[-2:]


def test_thousands_of_scans_are_refused_unread() -> None:
    """Guards against half a megabyte that takes minutes to decode."""
    assert refusal(scans(3000)) == "too_many_scans"
    assert refusal(scans(60, side=7000)) == "too_many_scans", "the limit falls with the size of the picture"
    plain = saved(photo(), "JPEG")
    comment = b"\xff\xfe" + struct.pack(">H", 60_002) + b"\xff\xda" * 30_000
    for harmless in (plain[:2] + comment + plain[2:], plain + b"\xff\xda" * 5000):
        assert refusal(harmless) is None, "bytes outside the picture are no scans"


# ---- whatever a decoder raises -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [struct.error("x"), RuntimeError("y"), MemoryError(), RecursionError(), AssertionError()]
)
def test_any_exception_of_a_decoder_is_the_files_row(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against one odd file that takes the thousand others of its shard with it."""

    def explode(*_: Any) -> None:
        raise error

    monkeypatch.setattr(Image.Image, "convert", explode)
    expected = "too_large" if isinstance(error, MemoryError) else "undecodable"
    assert refusal(saved(Image.new("P", (4, 4)), "PNG")) == expected


def test_a_line_of_a_hundred_million_pixels() -> None:
    """Guards against a MemoryError, from a file as small as 94 KB, that leaves the decoder."""
    header = struct.pack(">IIBBBBB", 100_000_000, 1, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(10_000))  # the buffer of a line is made before the first byte is read
    chunks = ((b"IHDR", header), (b"IDAT", body), (b"IEND", b""))
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(part)) + name + part + struct.pack(">I", zlib.crc32(name + part)) for name, part in chunks
    )
    assert refusal(data) == "too_large"


# ---- formats of optional readers ---------------------------------------------------------------------------------


def test_endings_follow_the_readers_at_hand() -> None:
    assert {".jpg", ".jpe", ".jfif", ".png", ".webp", ".j2k", ".avif", ".tif"} <= suffixes()
    assert not {".eps", ".pdf", ".psd", ".ico"} & suffixes()


def test_heic() -> None:
    """Guards against a phone's photos that are left out though their reader is installed."""
    pytest.importorskip("pillow_heif", reason="extra [heif]")
    check: Callable[[bytes], Any] = check_image
    image = photo()
    encoded, pixels = check(saved(image, "HEIF", quality=95))
    assert (encoded.format, encoded.width, encoded.height) == ("heif", 128, 96)
    assert np.abs(pixels.astype(int) - np.asarray(image)).mean() < 4
    assert ".heic" in suffixes()

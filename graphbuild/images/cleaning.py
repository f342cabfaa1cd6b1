"""Files that others made, fitted to what a codec promises: cleaned, or refused. No picture is stored on trust."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphbuild.errors import UnusableImage
from graphbuild.images import jpeg
from graphbuild.images.codecs import DRAWN, Encoded, Pixels, check_image, codec_of
from graphbuild.images.decode import check_file, check_pixels, refusals

Attrs = Mapping[str, Any]
Palette = Sequence[Sequence[int]]
_NONE: Attrs = MappingProxyType({})

MIDDLE = 0.05
"""Share of pixels of a black-and-white picture that may lie between 64 and 191: blurred edges, JPEG noise."""

DISTANCE = "distance"
"""The attribute `values` of grey levels that grow with the distance; 0 is unknown."""

_TINT = 40  # grey levels that the channels of a grey JPEG may differ by
_FLAT = 16  # grey levels that a neighbourhood of one colour may span after JPEG
_APART = 28.0  # distance of two colours of a map in RGB, below which they are one colour that JPEG has spread
_CLOSE = 8.0  # distance that JPEG moves a flat colour by
_GROUPED = 0.8  # share of flat pixels that are that close to one of few colours: 0.85 and more in maps, less in photos
_SHARE = 0.0003  # of the pixels, below which a colour is noise
_MOST_LABELS = 256


def fitted(codec: str, data: bytes, attrs: Attrs = _NONE, *, convert: bool = True) -> tuple[Encoded, Pixels | None]:
    """An untrusted file as the codec of its kind stores it, and its picture if it has one.

    `source` keeps the bytes. Greyscale depth has to be grey. Black-and-white pictures are brought to 0 and 255. Label
    maps become labels with a palette: from a palette PNG, from a picture of flat colours, or from grey values whose
    `palette` or `labels` are given; after JPEG, blurred borders go to the nearest flat region. Text has to be UTF-8,
    documents JSON. What was changed is named in the attribute `cleaned`.

    Args:
        attrs: facts that go with it, such as `palette` (RGB, 0..255) and `labels` (names) of a label map.
        convert: whether readers convert colours of a `source` file to sRGB from an ICC profile.

    Raises:
        UnusableImage: it cannot be decoded, or `bad_values`: it is no value of the codec; the message says why.
    """
    if codec == "source":
        encoded, picture = check_image(data, grey=True, convert=convert)
        return replace(encoded, attrs={**encoded.attrs, **attrs}), picture
    if codec in ("text", "json", *DRAWN):
        return _document(codec, data, attrs), None
    encoded, picture = _PICTURES.get(codec, _encoded(codec))(data, attrs)
    return encoded, picture


def _document(codec: str, data: bytes, attrs: Attrs) -> Encoded:
    try:
        text = data.decode("utf-8-sig")
        value = text if codec == "text" else json.loads(text)
        return replace(codec_of(codec).encode(value), attrs=dict(attrs))
    except (ValueError, RecursionError) as error:
        fix = "; a picture of it is declared with codec: source" if codec in DRAWN else ""
        raise UnusableImage("bad_values", f"not a {codec} value ({error}){fix}") from error


def _encoded(codec: str) -> Callable[[bytes, Attrs], tuple[Encoded, Pixels]]:
    def photo(data: bytes, attrs: Attrs) -> tuple[Encoded, Pixels]:
        pixels = check_pixels(data, check_file(data).format)
        return replace(codec_of(codec).encode(pixels), attrs=dict(attrs)), pixels

    return photo


# ---- grey and black and white --------------------------------------------------------------------------------------


def _grey(data: bytes) -> Pixels:
    pixels = check_pixels(data, check_file(data).format)
    if pixels.ndim == 3:
        tint = int((pixels.max(2).astype(np.int16) - pixels.min(2)).max())
        if tint > (_TINT if jpeg.is_jpeg(data) else 0):
            raise UnusableImage("bad_values", "a picture in colour where grey is promised")
        pixels = np.ascontiguousarray(pixels[:, :, 1])
    return pixels


def _soft(codec: str, data: bytes, attrs: Attrs) -> tuple[Encoded, Pixels]:
    grey, attrs = _near_is_bright(data, attrs) if attrs.get("values") == DISTANCE else (_grey(data), attrs)
    return replace(codec_of(codec).encode(grey), attrs=dict(attrs)), grey


def _near_is_bright(data: bytes, attrs: Attrs) -> tuple[Pixels, Attrs]:
    """Relative depth of a map of distances of 8 or 16 bits or of floats: inverse distance, 255 for the nearest pixel, 0
    for the farthest and for those without a distance."""
    from PIL import Image

    check_file(data)
    with refusals(), Image.open(io.BytesIO(data)) as image:
        image.load()
        far = np.asarray(image, np.float64) if image.mode in ("L", "I", "I;16", "I;16B", "F") else None
    if far is None:
        raise UnusableImage("bad_values", "distances are a picture of one channel")
    known = np.isfinite(far) & (far > 0)
    if not known.any():
        raise UnusableImage("bad_values", "no pixel has a distance")
    nearest, farthest = float(far[known].min()), float(far[known].max())
    span = 1 / nearest - 1 / farthest or 1.0
    grey = np.where(known, (1 / np.where(known, far, 1) - 1 / farthest) / span * 255, 0)
    said = {"nearest": nearest, "farthest": farthest, "cleaned": "distances as inverse depth, near is bright"}
    return np.round(grey).astype(np.uint8), {**attrs, **said}


def _black_and_white(data: bytes, attrs: Attrs) -> tuple[Encoded, Pixels]:
    grey = _grey(data)
    levels = np.unique(grey)
    if len(levels) <= 2 and levels[0] == 0:
        clean, how = np.where(grey > 0, np.uint8(255), np.uint8(0)), f"{levels[-1]} is 255"
    else:
        middle = float(np.mean((grey >= 64) & (grey < 192)))
        if middle > MIDDLE:
            raise UnusableImage(
                "bad_values",
                f"{len(levels)} grey values where 0 and 255 are promised, {middle:.0%} of the pixels far from both",
            )
        clean, how = np.where(grey >= 128, np.uint8(255), np.uint8(0)), f"{len(levels)} grey values, white from 128"
    said = {} if set(levels.tolist()) <= {0, 255} else {"cleaned": how}
    return replace(codec_of("png1").encode(clean), attrs={**attrs, **said}), clean


# ---- label maps ----------------------------------------------------------------------------------------------------


def _label_map(data: bytes, attrs: Attrs) -> tuple[Encoded, Pixels]:
    said: dict[str, str] = {}
    if (indexed := _indexed(data, attrs)) is not None:
        labels, palette = indexed
    else:
        pixels = check_pixels(data, check_file(data).format)
        labels, palette, said = _of_colours(pixels if pixels.ndim == 3 else np.repeat(pixels[:, :, None], 3, axis=2))
    names = list(attrs.get("labels") or ())
    if names and int(labels.max()) >= len(names):
        raise UnusableImage("bad_values", f"label {labels.max()}, but {len(names)} names are given")
    facts = {**attrs, "palette": palette, **said}
    return replace(codec_of("labels").encode(labels), attrs=facts), labels


def _indexed(data: bytes, attrs: Attrs) -> tuple[Pixels, Palette] | None:
    """Labels and palette of a file that holds labels and no colours; None for a picture of colours."""
    from PIL import Image

    check_file(data)
    with refusals(), Image.open(io.BytesIO(data)) as image:
        image.load()
        mode, raw = image.mode, np.asarray(image)
        own = None if mode != "P" else np.asarray(image.getpalette(), np.uint8).reshape(-1, 3)
    palette = attrs.get("palette")
    if mode == "P" and own is not None:
        return raw.astype(np.uint8), _palette_of(raw, own.tolist() if palette is None else palette)
    if mode not in ("L", "1", "I", "I;16"):
        return None
    levels = np.unique(raw)
    if palette is None and attrs.get("labels"):
        from graphbuild.images.rendering import distinct_colours

        palette = [[0, 0, 0], *distinct_colours(min(len(attrs["labels"]), 300) - 1)]
    if palette is None:
        if set(levels.tolist()) <= {0, 255}:
            return None  # one object, white on black
        raise UnusableImage(
            "bad_values", "a label map without a palette: give palette (RGB colours) or labels (names) for its kind"
        )
    if levels.min() < 0 or levels.max() >= _MOST_LABELS:
        raise UnusableImage("bad_values", f"labels from {levels.min()} to {levels.max()}; allowed: 0 to 255")
    return raw.astype(np.uint8), _palette_of(raw, palette)


def _palette_of(labels: NDArray[Any], palette: Palette) -> Palette:
    if int(labels.max()) >= len(palette):
        raise UnusableImage("bad_values", f"label {labels.max()}, but {len(palette)} colours in the palette")
    return palette[: int(labels.max()) + 1]


def _of_colours(pixels: Pixels) -> tuple[Pixels, Palette, dict[str, str]]:
    """Labels and palette of a picture of flat colours: exact, or as JPEG and scaling left it."""
    packed = (pixels.astype(np.int32) * (1 << 16, 1 << 8, 1)).sum(2)
    found, labels = np.unique(packed, return_inverse=True)
    labels, colours = labels.reshape(packed.shape), np.stack([found >> 16, (found >> 8) & 255, found & 255], 1)
    if len(found) <= _MOST_LABELS and _nearest_pair(colours) >= _APART:
        return labels.astype(np.uint8), colours.tolist(), {}
    flat = _flat(pixels)
    palette = _dominant(pixels[flat], _SHARE * flat.size)
    from scipy.ndimage import distance_transform_edt  # type: ignore[import-untyped]
    from scipy.spatial import cKDTree  # type: ignore[import-untyped]

    if not 0 < len(palette) <= _MOST_LABELS:
        raise UnusableImage("bad_values", f"not a map of flat colours: {len(palette)} of them; allowed: 1 to 256")
    away, number = cKDTree(palette).query(colours)
    nearest, distance = number[labels].astype(np.uint8), away[labels]
    grouped = float(np.mean(distance[flat] < _CLOSE))
    if flat.mean() < 0.5 or grouped < _GROUPED:
        raise UnusableImage(
            "bad_values",
            f"not a map of flat colours: {len(found)} colours, {flat.mean():.0%} of it flat, {grouped:.0%} of "
            f"that near one of {len(palette)} colours",
        )
    unsure = distance >= np.where(flat, _APART, _CLOSE)
    rows, columns = distance_transform_edt(unsure, return_distances=False, return_indices=True)
    return nearest[rows, columns], palette.tolist(), {"cleaned": f"{len(found)} colours brought to {len(palette)}"}


def _nearest_pair(palette: NDArray[Any]) -> float:
    """The smallest distance of two colours."""
    if len(palette) < 2:
        return np.inf
    from scipy.spatial import cKDTree

    return float(cKDTree(palette).query(palette, k=2)[0][:, 1].min())


def _flat(pixels: Pixels) -> NDArray[np.bool_]:
    """Pixels whose 3 x 3 neighbourhood is of one colour."""
    import cv2

    kernel = np.ones((3, 3), np.uint8)
    span = cv2.dilate(pixels, kernel).astype(np.int16) - cv2.erode(pixels, kernel)
    flat: NDArray[np.bool_] = span.max(2) <= _FLAT
    return flat


def _dominant(flat: Pixels, least: float) -> NDArray[Any]:
    """The colours that pixels have, commonest first: means of bins of 16 grey levels that are apart."""
    bins, inverse, counts = np.unique(
        (flat.astype(np.int32) >> 4) @ np.array([256, 16, 1]), return_inverse=True, return_counts=True
    )
    means = np.stack([np.bincount(inverse, flat[:, c], len(bins)) / counts for c in range(3)], 1)
    chosen: list[NDArray[Any]] = []
    for at in np.argsort(-counts, kind="stable"):
        if counts[at] < max(4, least):
            break
        if all(np.linalg.norm(means[at] - colour) >= _APART for colour in chosen):
            chosen.append(means[at])
    return np.round(np.array(chosen)).astype(int).reshape(-1, 3)


_PICTURES: Mapping[str, Callable[[bytes, Attrs], tuple[Encoded, Pixels]]] = {
    "png1": _black_and_white,
    "png8": partial(_soft, "png8"),
    "jpeg_gray": partial(_soft, "jpeg_gray"),
    "labels": _label_map,
}

"""The annotators without weights, and finding annotators by name."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from graphbuild.annotators import BUILTIN, DEFAULT_FOR, resolve
from graphbuild.annotators.base import Annotator, Derived, Request, Skip, config_of, each, makes_of, name_of, needs_of
from graphbuild.annotators.canny import Canny
from graphbuild.annotators.grabcut import Grabcut
from graphbuild.annotators.lsd import Lsd
from graphbuild.annotators.source_caption import SourceCaption
from graphbuild.contracts import Item
from graphbuild.images.codecs import CODECS, check_image
from graphbuild.images.node import Node
from tests.support.annotators import Ordered

CASES = ("00004-of-00022-7170", "00005-of-00022-4396", "00017-of-00022-8377", "00018-of-00022-4948")


def _request(data: bytes, *, seed: int = 1, caption: str | None = None) -> Request:
    encoded, _ = check_image(data)
    item = Item(0, "id", "key", caption, None, None, None, None)
    return Request(item, {"image": Node(0, "image", 0, "v0", encoded.data, encoded.format, "source")}, 0, seed)


def _made(annotator: Annotator, kind: str, request: Request) -> tuple[Any, Derived]:
    (result,) = annotator.annotate([request], annotator.load("cpu"))
    assert isinstance(result, Derived)
    codec = CODECS[annotator.codec(makes_of(annotator)[kind])]
    encoded = codec.encode(result.nodes[kind])
    return codec.values(encoded.data, encoded.format), result


def _f1(ours: NDArray[Any], theirs: NDArray[Any]) -> float:
    """Agreement of two edge maps when an edge may lie one pixel off."""
    near = np.ones((3, 3), np.uint8)
    precision = (cv2.dilate(theirs.astype(np.uint8), near)[ours] > 0).mean()
    recall = (cv2.dilate(ours.astype(np.uint8), near)[theirs] > 0).mean()
    return float(2 * precision * recall / (precision + recall))


@pytest.mark.parametrize("name", BUILTIN)
def test_every_number_has_a_range(name: str) -> None:
    """Guards against a parameter that takes any number: with `margin: 0.9` every mask was empty and ok."""
    defaults = config_of(resolve(name))
    numbers = [field for field, value in defaults.items() if type(value) in (int, float)]
    for field, nonsense in itertools.product(numbers, (-1, 1e9, float("nan"))):
        with pytest.raises(ValueError, match=rf"{field}: {re.escape(str(nonsense))}; allowed: "):
            resolve(name, {**defaults, field: nonsense})


def test_thresholds_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(ValueError, match=r"low: 300; allowed: at most high, which is 200\.0"):
        Canny(low=300)
    assert Canny(low=200).high == 200


@pytest.mark.data
@pytest.mark.parametrize("case", CASES)
def test_canny_is_the_one_of_graph200k(case: str, data_folder: Callable[[str], Path]) -> None:
    """Guards against Canny on the grey picture, swapped channels or other thresholds than the dataset's."""
    folder = data_folder("reference") / f"vc_data-{case}"
    reference = np.asarray(Image.open(folder / f"data-{case}_canny_100_200_512.jpg").convert("L")) > 127
    edges, _ = _made(Canny(), "canny", _request((folder / f"data-{case}_target.jpg").read_bytes()))
    assert edges.shape == reference.shape and set(np.unique(edges)) <= {0, 255}
    assert _f1(edges > 0, reference) >= 0.95


def _png(array: NDArray[Any]) -> bytes:
    return bytes(cv2.imencode(".png", array)[1])


def _rectangle() -> NDArray[Any]:
    picture = np.full((120, 160, 3), 200, np.uint8)
    picture[30:90, 40:120] = (20, 60, 30)
    return picture


def test_canny_thresholds() -> None:
    """Guards against thresholds that are stored but not used."""
    rng = np.random.default_rng(0)
    request = _request(_png(cv2.GaussianBlur(rng.integers(0, 256, (96, 96, 3), np.uint8), (5, 5), 0)))
    few, many = (_made(Canny(low=low, high=2 * low), "canny", request)[0] for low in (200, 50))
    assert 0 <= (few > 0).sum() < (many > 0).sum()


def test_lsd_finds_the_sides_of_a_rectangle() -> None:
    """Guards against swapped coordinates, or lines that do not lie where the edges are."""
    lines, result = _made(Lsd(), "lines", _request(_png(_rectangle())))
    found = lines > 0
    sides = [found[50:70, 37:43], found[50:70, 117:123], found[27:33, 60:100], found[87:93, 60:100]]
    assert all(side.any() for side in sides) and not found[45:75, 60:100].any()
    assert result.score == pytest.approx((2 * 60 + 2 * 80) / np.hypot(120, 160), rel=0.5)


def test_lsd_skips_a_picture_without_lines() -> None:
    """Guards against a black picture offered as a condition, and a crash on None from OpenCV."""
    assert Lsd().annotate([_request(_png(np.full((40, 40, 3), 90, np.uint8)))], None) == [Skip("no_lines")]


@pytest.mark.parametrize("shape", [(1, 1), (1, 20_000), (20_000, 1), (2, 3), (5, 2000)])
def test_thin_pictures(shape: tuple[int, int]) -> None:
    """Guards against an OpenCV assertion on pictures that are a line or a dot."""
    request = _request(_png(np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)))
    assert _made(Canny(), "canny", request)[0].shape == shape
    for annotator in (Lsd(), Grabcut()):
        assert isinstance(annotator.annotate([request], None)[0], Skip | Derived)


def test_grabcut_finds_the_thing_in_the_middle() -> None:
    """Guards against an inverted or shifted mask, and a score that is not its share of the picture."""
    mask, result = _made(Grabcut(), "foreground_mask", _request(_png(_rectangle())))
    truth = np.zeros((120, 160), bool)
    truth[30:90, 40:120] = True
    assert ((mask > 0) & truth).sum() / ((mask > 0) | truth).sum() > 0.9
    assert result.score == pytest.approx((mask > 0).mean())


def test_grabcut_depends_on_its_seed_alone(photos: Path) -> None:
    """Guards against OpenCV's global generator: what ran before must not change a mask."""
    data = (photos / "p11.png").read_bytes()
    first = _made(Grabcut(), "foreground_mask", _request(data, seed=5))[0]
    for path in sorted(photos.iterdir())[3:6]:
        Grabcut().annotate([_request(path.read_bytes(), seed=9)], None)
    cv2.setRNGSeed(1)
    assert np.array_equal(_made(Grabcut(), "foreground_mask", _request(data, seed=5))[0], first)


def test_grabcut_skips_a_picture_without_foreground(photos: Path) -> None:
    """Guards against a foreground that is black, or all but black, offered as a condition."""
    tissue, coins = (_request((photos / name).read_bytes()) for name in ("p17.png", "p07.png"))
    assert Grabcut(smallest=0).annotate([tissue], None) == [Skip("no_foreground")]
    corner, result = _made(Grabcut(smallest=0), "foreground_mask", coins)
    assert corner.any() and result.score is not None and result.score < 0.02
    assert Grabcut().annotate([coins], None) == [Skip("no_foreground")]


def test_source_caption(photos: Path) -> None:
    """Guards against an empty caption stored as if it were one."""
    data = (photos / "p00.jpg").read_bytes()
    assert _made(SourceCaption(), "caption", _request(data, caption="A cat."))[0] == "A cat."
    for nothing in (None, ""):
        assert isinstance(SourceCaption().annotate([_request(data, caption=nothing)], None)[0], Skip)


# ---- by name -----------------------------------------------------------------------------------------------------


def test_every_name_resolves() -> None:
    """Guards against a renamed class behind a name that pipelines use."""
    for name in BUILTIN:
        assert name_of(resolve(name)) == name
    for kind, name in DEFAULT_FOR.items():
        assert name_of(resolve(kind)) == name and kind in {made.name for made in makes_of(resolve(kind)).values()}


def test_resolve_takes_parameters_and_classes() -> None:
    """Guards against YAML integers refused for float parameters, and against classes outside the library."""
    assert resolve("canny", {"low": 50}) == Canny(low=50.0)
    assert resolve("tests.support.annotators:Ordered", {"tag": "x"}) == Ordered(tag="x")


@pytest.mark.parametrize(
    ("use", "config", "words"),
    [
        ("cany", {}, ["cany", "did you mean 'canny'", "lsd"]),
        ("canny", {"lo": 1}, ["lo", "low", "high"]),
        ("canny", {"low": "a lot"}, ["low", "a lot"]),
        ("no.such.module:Class", {}, ["no.such.module"]),
        ("graphbuild.contracts:Item", {}, ["no subclass of graphbuild.Annotator"]),
        ("graphbuild.annotators.canny:Nothing", {}, ["Nothing"]),
    ],
)
def test_resolve_says_what_is_valid(use: str, config: dict[str, Any], words: list[str]) -> None:
    """Guards against a traceback where a typo should be named."""
    with pytest.raises(ValueError, match=re.escape(words[0])) as caught:
        resolve(use, config)
    assert all(word in str(caught.value) for word in words), caught.value


def test_of_names_the_parent() -> None:
    """Guards against `Canny(of=...)` overwriting the image's own canny."""
    annotator = Canny(of="edit_local")
    assert [kind.name for kind in makes_of(annotator).values()] == ["edit_local.canny"]
    assert needs_of(annotator) == {"image": each("edit_local")}
    assert makes_of(annotator)["canny"].phrases == makes_of(Canny())["canny"].phrases != ()

"""The check that annotator authors run: it passes good annotators and says what is wrong with broken ones."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from graphbuild.annotators.base import Annotator, Condition, Derived, Each, Request, Skip, each, parameter
from graphbuild.annotators.canny import Canny
from graphbuild.annotators.grabcut import Grabcut
from graphbuild.annotators.hed import Hed
from graphbuild.annotators.lsd import Lsd
from graphbuild.annotators.source_caption import SourceCaption
from graphbuild.annotators.testing import AnnotatorCheckError, check_annotator
from graphbuild.errors import GraphError
from graphbuild.images.node import Node
from tests.support.annotators import OfStyles, Random, Styles


def _edges(request: Request) -> NDArray[Any]:
    return cv2.Canny(request.inputs["image"].array(), 100, 200)


def _noise(rng: Any, request: Request) -> Derived:
    return Derived({"canny": rng(request.inputs["image"].array().shape[:2]) < 0.5})


BROKEN: dict[str, tuple[Callable[[Request, Sequence[Request]], Any], tuple[str, ...]]] = {
    "size": (
        lambda request, batch: Derived({"canny": _edges(request)[:-1]}),
        ("picture 1 (67 x 101): canny: 67 x 100 pixels, but the picture has 67 x 101",),
    ),
    "kind": (
        lambda request, batch: Derived({"canny": _edges(request), "depth": _edges(request)}),
        ("made 'depth', which is not among the kinds it makes: canny",),
    ),
    "dtype": (
        lambda request, batch: Derived({"canny": _edges(request) / 255}),
        ("canny: codec 'png1' cannot store or draw it: ValueError: expected a H x W uint8 array, got float64",),
    ),
    "grey": (lambda request, batch: Derived({"canny": _edges(request) // 2}), ("only 0 and 255",)),
    "empty": (lambda request, batch: Derived({}), ("Derived without nodes",)),
    "score": (lambda request, batch: Derived({"canny": _edges(request)}, score=float("nan")), ("score nan",)),
    "attrs": (
        lambda request, batch: Derived({"canny": _edges(request)}, attrs={"n": np.zeros(2)}),
        ("are not JSON", "ndarray"),
    ),
    "reason": (
        lambda request, batch: Skip("No lines!") if _edges(request).size < 999 else Derived({"canny": _edges(request)}),
        ("picture 3 (16 x 16): the reason of Skip(reason='No lines!') is not one snake_case word",),
    ),
    "none": (lambda request, batch: None, ("annotate gave NoneType, which is neither Derived nor Skip",)),
    "raises": (lambda request, batch: 1 // 0, ("picture 0 (160 x 128): annotate raised ZeroDivisionError",)),
    "exception": (lambda request, batch: KeyError("x"), ("picture 4 (160 x 120): annotate gave KeyError: 'x'",)),
    "skips": (lambda request, batch: Skip("no_lines"), ("it skipped every picture (Skip(reason='no_lines'))",)),
    "random": (
        lambda request, batch: _noise(np.random.default_rng().random, request),
        ("picture 0 (160 x 128): not the same again with the same seed: canny",),
    ),
    "score changes": (
        lambda request, batch: Derived({"canny": _edges(request)}, score=np.random.default_rng().random()),
        ("not the same again with the same seed: score",),
    ),
    "batch": (
        lambda request, batch: Derived({"canny": _edges(request) * (len(batch) == 1)}),
        ("picture 1 (67 x 101): not the same in a batch as alone: canny",),
    ),
    "batch fails": (
        lambda request, batch: Derived({"canny": _edges(request)}) if len(batch) == 1 else 1 // 0,
        ("all pictures in one batch: annotate raised ZeroDivisionError",),
    ),
    "numpy": (
        lambda request, batch: (np.random.seed(1), _noise(np.random.random, request))[1],
        ("annotate draws from or seeds the global generator of numpy.random; use request.seed",),
    ),
    "python": (
        lambda request, batch: (random.random(), Derived({"canny": _edges(request)}))[1],
        ("the global generator of random;",),
    ),
}
"""What one result is, and the words that say what is wrong with it."""


@dataclass(frozen=True, kw_only=True)
class Broken(Condition):
    """Canny edges, but broken in the way of `mode`."""

    makes: ClassVar[tuple[str, ...]] = ("canny",)
    mode: str

    def annotate(self, batch: Sequence[Request], model: Any) -> list[Any]:
        return [BROKEN[self.mode][0](request, batch) for request in batch]


@dataclass(frozen=True, kw_only=True)
class Short(Condition):
    """One result too few."""

    makes: ClassVar[tuple[str, ...]] = ("canny",)

    def annotate(self, batch: Sequence[Request], model: Any) -> list[Any]:
        return [Derived({"canny": _edges(request)}) for request in batch[1:]]


@dataclass(frozen=True, kw_only=True)
class Placed(Canny):
    """A parameter that no pipeline file can hold."""

    folder: Path = Path("/")


@dataclass(frozen=True, kw_only=True)
class Labels(Condition):
    """One class for every pixel, with the palette that draws it or without."""

    makes: ClassVar[tuple[str, ...]] = ("semantic",)
    palette: bool = True

    def annotate(self, batch: Sequence[Request], model: Any) -> list[Any]:
        attrs = {"palette": [[0, 0, 0], [255, 0, 0]]} if self.palette else None
        return [Derived({"semantic": np.minimum(_edges(request), 1)}, attrs=attrs) for request in batch]


@dataclass(frozen=True, kw_only=True)
class Rounded(Condition):
    """Soft edges, a little brighter in a batch, as a network's may be; in one corner much brighter with `corner`."""

    makes: ClassVar[tuple[str, ...]] = ("hed",)
    corner: int = parameter(0, output=False)

    def annotate(self, batch: Sequence[Request], model: Any) -> list[Any]:
        made = [_edges(request) // 2 + (len(batch) > 1) for request in batch]
        for edges in made:
            edges[: self.corner, : self.corner] += 9 * (len(batch) > 1)
        return [Derived({"hed": edges.astype(np.uint8)}) for edges in made]


@dataclass(frozen=True, kw_only=True)
class Captioned(Annotator):
    """Reads a mask, a caption and every style."""

    needs: ClassVar[tuple[str | Each, ...]] = ("image", "foreground_mask", "caption", each("style_reference"))
    makes: ClassVar[tuple[str, ...]] = ("edit_text",)

    def annotate(self, batch: Sequence[Request], model: Any) -> list[Any]:
        return [Derived({"edit_text": self._words(request.inputs)}) for request in batch]

    def _words(self, inputs: Any) -> str:
        style, mask = inputs["style_reference"].array(), inputs["foreground_mask"].values()
        assert mask.shape == inputs["image"].array().shape[:2] and style.shape == (8, 8, 3)
        return f"{inputs['caption'].text} on {mask.mean():.0f}"


def _problems(annotator: Annotator, *args: Any, **options: Any) -> tuple[str, ...]:
    with pytest.raises(AnnotatorCheckError) as caught:
        check_annotator(annotator, *args, **options)
    assert str(caught.value).splitlines() == list(caught.value.problems)
    return caught.value.problems


@pytest.mark.parametrize(
    "annotator",
    [Canny(), Canny(of="edit_local", low=50), Lsd(), Grabcut(), SourceCaption(), Styles(), Labels()],
    ids=repr,
)
def test_good_annotators_pass(annotator: Annotator) -> None:
    """Guards against a check that cries wolf."""
    check_annotator(annotator)


@pytest.mark.parametrize("mode", BROKEN)
def test_broken_annotators_are_told_why(mode: str) -> None:
    """Guards against each break of the contract passing unseen, or named by something else."""
    problems = _problems(Broken(mode=mode))
    for words in BROKEN[mode][1]:
        assert any(problem.startswith("broken: ") and words in problem for problem in problems), problems


def test_every_problem_is_listed() -> None:
    """Guards against authors who mend one problem a run."""
    problems = _problems(Broken(mode="size"))
    assert len(problems) == len(set(problems)) == 5
    assert [problem.split(":")[1].split(" (")[0] for problem in problems] == [f" picture {n}" for n in range(5)]


def test_the_cause_is_kept() -> None:
    """Guards against a lost traceback: the author has to see where it raised."""
    with pytest.raises(AnnotatorCheckError) as caught:
        check_annotator(Broken(mode="raises"))
    assert isinstance(caught.value.__cause__, ZeroDivisionError) and isinstance(caught.value, GraphError)


def test_other_breaks() -> None:
    """Guards against results that cannot be told apart, labels that cannot be drawn, and lost parameters."""
    assert "annotate returned 0 for 1 requests" in _problems(Short())[0]
    assert "KeyError: 'palette'" in _problems(Labels(palette=False))[0]
    (problem,) = _problems(Placed())
    assert problem.startswith("placed: its configuration cannot be stored and read back TypeError")


def test_randomness_may_be_declared() -> None:
    """Guards against an annotator that says it is not deterministic and is held to it all the same."""
    small = np.zeros((16, 16, 3), np.uint8)
    check_annotator(Random(), [small])


def test_torch_is_watched_where_it_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a seeded torch: the next annotator of the worker would draw the same numbers."""
    torch = pytest.importorskip("torch")
    seeded = (lambda request, batch: (torch.manual_seed(1), Derived({"canny": _edges(request)}))[1], ())
    monkeypatch.setitem(BROKEN, "torch", seeded)
    assert any("generator of torch;" in problem for problem in _problems(Broken(mode="torch")))


def test_tolerance_forgives_rounding_alone() -> None:
    """Guards against networks that cannot pass, and against a tolerance that hides a wrong corner."""
    assert len(_problems(Rounded())) == 5
    check_annotator(Rounded(), tolerance=1)
    assert all("not the same in a batch as alone: hed" in line for line in _problems(Rounded(corner=5), tolerance=1))


def test_inputs() -> None:
    """Guards against a KeyError inside the annotator where the check was given too little, or too much."""
    pictures = [np.full((height, 20, 3), 90, np.uint8) for height in (10, 12)]
    masks = [np.full((height, 20), 255, np.uint8) for height in (10, 12)]
    inputs = {"foreground_mask": masks, "caption": "a cat", "style_reference": np.zeros((8, 8, 3), np.uint8)}
    check_annotator(Captioned(), pictures, inputs=inputs)
    check_annotator(Captioned(), pictures, inputs=inputs | {"caption": Node(0, "c", 0, "v", b"a", "text", "text")})
    style = np.zeros((9, 7, 3), np.uint8)
    check_annotator(OfStyles(), inputs={"style_content": style, "style_content.canny": np.zeros((9, 7), np.uint8)})

    problems = _problems(Captioned(), pictures, inputs={"caption": "a cat"})
    assert [problem.partition(":")[0] for problem in problems] == [
        "captioned needs 'foreground_mask'",
        "captioned needs 'style_reference'",
    ]
    (problem,) = _problems(Canny(), inputs={"captoin": "a cat"})
    assert problem == "canny does not need 'captoin'; it needs: image"


def test_pictures_may_be_files(photos: Path) -> None:
    """Guards against an author's own files that have to be decoded first."""
    check_annotator(Canny(), [path.read_bytes() for path in sorted(photos.iterdir())[:2]])


def test_missing_weights_come_first() -> None:
    """Guards against a traceback from the hub where the command that gets the weights would help."""
    (problem,) = _problems(Hed(model="nobody/nothing"))
    assert "graphbuild models fetch nobody/nothing" in problem

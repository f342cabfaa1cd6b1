"""The contract of annotators as a check that their authors run in their own tests."""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from graphbuild.annotators import resolve
from graphbuild.annotators.base import (
    Annotator,
    Derived,
    Each,
    Request,
    Skip,
    config_of,
    makes_of,
    name_of,
    needs_of,
    use_of,
    variants_of,
)
from graphbuild.contracts import Item
from graphbuild.errors import GraphError
from graphbuild.hashing import canonical_json, seed_of
from graphbuild.images.codecs import Pixels, codec_of
from graphbuild.images.node import Node
from graphbuild.kinds.registry import Kind, kind_of

SNAKE_CASE = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
TIPPED = 0.001
"""Share of pixels that may differ by more than the tolerance: what a network rounds otherwise in a batch can tip
single pixels of a mask from black to white."""


class AnnotatorCheckError(GraphError):
    """An annotator breaks its contract. `problems` says how; the message has one line for each."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


def check_annotator(
    annotator: Annotator,
    pictures: Sequence[Pixels | bytes] | None = None,
    *,
    inputs: Mapping[str, Any] | None = None,
    tolerance: float = 0.0,
) -> None:
    """Load an annotator on the CPU, run it on pictures, and see whether it keeps its contract.

    It has to give one `Derived` or `Skip` per request, only kinds that it makes, values that their codecs store and
    draw, conditions of the picture's size, skip reasons in snake_case; the same result for the same request (if it
    is `deterministic`), alone or in a batch; it has to leave the global generators of random, numpy and torch alone;
    and its configuration has to make an equal annotator again.

    Args:
        pictures: H x W x 3 RGB uint8 arrays, or image files as bytes; by default five small ones, among them a grey
            one, one with odd sides and one of 16 x 16 pixels.
        inputs: kind -> value for what it needs besides `image`: what its codec encodes (array, text, JSON) or a
            `Node`, the same for all pictures, or a list with one for each.
        tolerance: grey levels (pixels, units) that a value from a batch may differ by from one made alone. 0 means
            exactly equal; 1 or 2 suits networks, of which then one pixel in a thousand may differ more.

    Raises:
        AnnotatorCheckError: weights or inputs are missing, or it breaks the contract; every problem found is listed.
    """
    requests = _requests(annotator, _pictures() if pictures is None else pictures, inputs or {})
    if missing := annotator.missing():
        raise AnnotatorCheckError(missing)
    check = _Check(annotator)
    check.configuration()
    check.behaviour(requests, tolerance)
    if check.problems:
        name = name_of(annotator)
        raise AnnotatorCheckError([f"{name}: {problem}" for problem in check.problems]) from check.cause


class _Wrong(Exception):
    """A problem after which there is no result to look at."""


class _Check:
    """Problems of one annotator, and the first exception it raised."""

    def __init__(self, annotator: Annotator) -> None:
        self.annotator = annotator
        self.problems: list[str] = []
        self.cause: Exception | None = None

    def configuration(self) -> None:
        """Whether its configuration survives a pipeline file and a commit."""
        try:
            config = json.loads(canonical_json(config_of(self.annotator)))
            again = resolve(use_of(self.annotator), config)
        except (TypeError, ValueError) as error:
            self._failed("its configuration cannot be stored and read back", error)
            return
        if replace(again, resources=self.annotator.resources) != self.annotator:
            self.problems.append(f"its configuration {config} makes another annotator: {again!r}")

    def behaviour(self, requests: Sequence[Request], tolerance: float) -> None:
        """Results alone, repeated and in a batch, and whether global generators are left alone."""
        try:
            model = self.annotator.load("cpu")
        except Exception as error:
            self._failed("load('cpu') raised", error)
            return
        before = _random_states()
        alone = [self._alone(request, model) for request in requests]
        if None not in alone:
            self._batch(requests, alone, model, tolerance)
        if alone and all(isinstance(result, Skip) for result in alone):
            reasons = ", ".join(sorted({repr(result) for result in alone}))
            self.problems.append(f"it skipped every picture ({reasons}): pass pictures in which there is something")
        after = _random_states()
        self.problems += [
            f"annotate draws from or seeds the global generator of {library}; use request.seed"
            for library in before
            if before[library] != after[library]
        ]

    def _alone(self, request: Request, model: Any) -> Derived | Skip | None:
        where = request.item.key
        try:
            (result,) = self._results([request], model)
            self.problems += [f"{where}: {problem}" for problem in _wrong(self.annotator, request, result)]
            if self.annotator.deterministic:
                (again,) = self._results([request], model)
                if difference := _difference(result, again, 0):
                    self.problems.append(f"{where}: not the same again with the same seed: {difference}")
        except _Wrong as error:
            self._failed(f"{where}: {error}", error.__cause__)
            return None
        return result

    def _batch(self, requests: Sequence[Request], alone: Sequence[Any], model: Any, tolerance: float) -> None:
        try:
            together = self._results(requests, model)
        except _Wrong as error:
            self._failed(f"all pictures in one batch: {error}", error.__cause__)
            return
        for request, one, other in zip(requests, alone, together, strict=True):
            difference = _difference(one, other, tolerance) if self.annotator.deterministic else None
            if difference:
                self.problems.append(f"{request.item.key}: not the same in a batch as alone: {difference}")

    def _results(self, batch: Sequence[Request], model: Any) -> Sequence[Derived | Skip]:
        try:
            results = self.annotator.annotate(batch, model)
        except Exception as error:
            raise _Wrong("annotate raised") from error
        if not isinstance(results, Sequence) or len(results) != len(batch):
            count = len(results) if isinstance(results, Sequence) else type(results).__name__
            raise _Wrong(f"annotate returned {count} for {len(batch)} requests, not a list with one result each")
        return [_outcome(result) for result in results]

    def _failed(self, what: str, error: BaseException | None) -> None:
        self.problems.append(what if error is None else f"{what} {type(error).__name__}: {error}")
        if self.cause is None and isinstance(error, Exception):
            self.cause = error


def _outcome(result: Any) -> Derived | Skip:
    if isinstance(result, Derived | Skip):
        return result
    if isinstance(result, Exception):
        raise _Wrong("annotate gave") from result
    raise _Wrong(f"annotate gave {type(result).__name__}, which is neither Derived nor Skip")


# ---- one result --------------------------------------------------------------------------------------------------


def _wrong(annotator: Annotator, request: Request, result: Derived | Skip) -> Iterator[str]:
    """What breaks the contract in one result."""
    if isinstance(result, Skip):
        if not SNAKE_CASE.fullmatch(result.reason):
            yield f"the reason of {result!r} is not one snake_case word"
        return
    makes = makes_of(annotator)
    if not result.nodes:
        yield "Derived without nodes; return Skip with a reason instead"
    for name in result.nodes:
        if name in makes:
            yield from (f"{name}: {problem}" for problem in _wrong_value(annotator, makes[name], request, result, name))
        else:
            yield f"made {name!r}, which is not among the kinds it makes: {', '.join(makes)}"
    try:
        canonical_json([None if result.score is None else float(result.score), dict(result.attrs or {})])
    except (TypeError, ValueError) as error:
        yield f"score {result.score!r} and attrs {result.attrs!r} are not JSON: {error}"


def _wrong_value(annotator: Annotator, kind: Kind, request: Request, result: Derived, name: str) -> Iterator[str]:
    codec = annotator.codec(kind)
    try:
        encoded = codec_of(codec).encode(result.nodes[name])
        attrs = {**encoded.attrs, **(result.attrs or {})}
        node = Node(0, kind.name, 0, "", encoded.data, encoded.format, codec, attrs)
        height, width = node.array().shape[:2] if encoded.width is not None else (None, None)
    except (ValueError, TypeError, LookupError) as error:
        yield f"codec {codec!r} cannot store or draw it: {type(error).__name__}: {error}"
        return
    if kind.family == "condition" and width is not None and "image" in request.inputs:
        rows, columns = request.inputs["image"].array().shape[:2]
        if (width, height) != (columns, rows):
            yield f"{width} x {height} pixels, but the picture has {columns} x {rows}"


# ---- two results -------------------------------------------------------------------------------------------------


def _difference(one: Derived | Skip, other: Derived | Skip, tolerance: float) -> str | None:
    """How two results of one request differ; None if they do not."""
    if isinstance(one, Skip) or isinstance(other, Skip):
        outcomes = [repr(result) if isinstance(result, Skip) else "Derived" for result in (one, other)]
        return None if one == other else " and ".join(outcomes)
    if set(one.nodes) != set(other.nodes):
        return f"kinds {sorted(one.nodes)} and {sorted(other.nodes)}"
    apart = [kind for kind in one.nodes if not _same(one.nodes[kind], other.nodes[kind], tolerance)]
    facts = [name for name in ("score", "attrs") if not _same(getattr(one, name), getattr(other, name), tolerance)]
    return ", ".join(apart + facts) or None


def _same(one: Any, other: Any, tolerance: float) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray):
        return _same_pixels(one, other, tolerance)
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(_same(one[key], other[key], tolerance) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(_same(a, b, tolerance) for a, b in zip(one, other, strict=True))
    if isinstance(one, int | float):
        return bool(abs(one - other) <= tolerance)
    return bool(one == other)


def _same_pixels(one: Any, other: Any, tolerance: float) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    apart = np.abs(one.astype(np.float64) - other) > tolerance
    return bool(apart.mean() <= (TIPPED if tolerance else 0))


def _random_states() -> dict[str, Any]:
    """The global generators as they are now; torch's only where something has loaded torch."""
    _, words, *place = np.random.get_state()
    states: dict[str, Any] = {"random": random.getstate(), "numpy.random": (np.asarray(words).tobytes(), place)}
    if torch := sys.modules.get("torch"):
        states["torch"] = torch.get_rng_state().numpy().tobytes()
    return states


# ---- requests ----------------------------------------------------------------------------------------------------


def _requests(annotator: Annotator, pictures: Sequence[Pixels | bytes], inputs: Mapping[str, Any]) -> list[Request]:
    needs = {name: need.kind if isinstance(need, Each) else need for name, need in needs_of(annotator).items()}
    absent = [name for name in needs if name not in inputs and name != "image"]
    unknown = sorted(set(inputs) - set(needs))
    if absent or unknown:
        name = name_of(annotator)
        raise AnnotatorCheckError(
            [f"{name} needs {kind!r}: pass inputs={{{kind!r}: ...}}" for kind in absent]
            + [f"{name} does not need {kind!r}; it needs: {', '.join(needs)}" for kind in unknown]
        )
    requests = []
    for number, picture in enumerate(pictures):
        values = {name: inputs.get(name, picture) for name in needs}
        chosen = {name: value[number] if isinstance(value, list) else value for name, value in values.items()}
        nodes = {name: _node(needs[name], value) for name, value in chosen.items()}
        where = f"picture {number}"
        if "image" in nodes:
            height, width = nodes["image"].array().shape[:2]
            where += f" ({width} x {height})"
        for variant in range(min(2, variants_of(annotator))):
            key = f"{where}, variant {variant}" if variant else where
            item = Item(number, f"{number:032x}", key, "a photograph", None, "a thing", None, None)
            requests.append(Request(item, nodes, variant, seed_of("v000000000000", item.item_id, variant)))
    return requests


def _node(kind: str, value: Any) -> Node:
    if isinstance(value, Node):
        return value
    codec = kind_of(kind).codec
    if codec is None:
        return Node.computed(0, kind, value)
    encoded = codec_of(codec).encode(value)
    return Node(0, kind, 0, "v000000000000", encoded.data, encoded.format, codec, encoded.attrs)


def _pictures() -> list[Pixels]:
    """A face, fur, a grey photograph, hardly anything, and straight lines."""
    from skimage import data

    astronaut, cat, cameraman, coffee = (getattr(data, name)() for name in ("astronaut", "chelsea", "camera", "coffee"))
    drawn = np.full((120, 160, 3), 200, np.uint8)
    drawn[30:90, 40:120] = (20, 60, 30)
    return [
        astronaut[:128, 150:310],
        cat[100:201, 100:167],
        np.repeat(cameraman[100:196, 180:308, None], 3, axis=2),
        coffee[100:116, 300:316],
        drawn,
    ]

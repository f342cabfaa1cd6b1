"""The metrics by name: what each is of, which direction is better, and which network it needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from graphbuild.images import agreement
from graphbuild.images.codecs import Pixels
from graphbuild.models.embeddings import cosine
from graphbuild_train.metrics import pixels
from graphbuild_train.metrics.example import Example

Better = Literal["higher", "lower"]
Measure = Callable[[Example, Any], float | None]

EDGES = ("canny", "lines", "scribble")
MASKS = ("foreground_mask",)
LABELS = ("semantic", "clothes", "mask", "segments")
LEVELS = ("depth", "hed", "lineart")


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One figure of a generated picture.

    Attributes:
        title: as the paper writes it.
        better: which direction is.
        measure: the figure of an example, None if it has none. The second argument is the network.
        network: name of the network that it needs, see `graphbuild_train.metrics.networks`.
    """

    name: str
    title: str
    better: Better
    measure: Measure
    network: str = ""


def _f1(example: Example, _: Any) -> float | None:
    if example.kind.name in EDGES:
        return agreement.f1(_grey(example.made), _grey(example.truth))
    return _of_maps(example, EDGES, agreement.f1)


def _rmse(example: Example, _: Any) -> float | None:
    if example.restores:
        return agreement.rmse(example.made, example.truth)
    if example.kind.name in LEVELS:
        return agreement.rmse(_grey(example.made), _grey(example.truth))
    return _of_maps(example, LEVELS, agreement.rmse)


def _iou(example: Example, _: Any) -> float | None:
    if example.kind.name in MASKS:
        return agreement.iou(_grey(example.made), _grey(example.truth))
    if example.kind.name in LABELS:
        return agreement.mean_iou(*agreement.colour_labels(example.made, example.truth))
    return _first(_of_maps(example, MASKS, agreement.iou), _of_maps(example, LABELS[:-1], agreement.mean_iou))


def _angular_error(example: Example, _: Any) -> float | None:
    if example.kind.name == "normal":
        return agreement.angular_error(example.made, example.truth)
    return _of_maps(example, ("normal",), agreement.angular_error)


def _pck(example: Example, _: Any) -> float | None:
    return _of_maps(example, ("pose",), agreement.pck)


def _of_pictures(measure: Callable[[Pixels, Pixels], float]) -> Measure:
    return lambda example, _: measure(example.made, example.truth) if example.is_picture else None


def _lpips(example: Example, network: Any) -> float | None:
    return float(network.distance(example.made, example.truth)) if example.is_picture else None


def _clip_score(example: Example, network: Any) -> float | None:
    return 100 * max(0.0, _to_words(example, network)) if _is_described(example) and not example.is_style else None


def _clip_t(example: Example, network: Any) -> float | None:
    return 100 * _to_words(example, network) if _is_described(example) and _is_subject(example) else None


def _clip_i(example: Example, network: Any) -> float | None:
    return 100 * _to_cell(example, network, "reference") if _is_subject(example) else None


def _dino(example: Example, network: Any) -> float | None:
    return 100 * _to_cell(example, network, "reference") if _is_subject(example) else None


def _text_consistency(example: Example, network: Any) -> float | None:
    return _to_words(example, network) if _is_described(example) and example.is_style else None


def _style_consistency(example: Example, network: Any) -> float | None:
    return _to_cell(example, network, "style_reference") if example.is_style else None


def _is_described(example: Example) -> bool:
    return example.is_picture and bool(example.caption)


def _is_subject(example: Example) -> bool:
    return example.is_picture and "reference" in example.given and not example.is_style


def _to_words(example: Example, network: Any) -> float:
    return cosine(network.picture(example.made), network.words(example.caption))


def _to_cell(example: Example, network: Any, kind: str) -> float:
    return cosine(network.picture(example.made), network.picture(example.given[kind]))


def _of_maps(example: Example, kinds: tuple[str, ...], measure: Callable[[Any, Any], float | None]) -> float | None:
    """The mean over the given conditions of these kinds, made again from the picture."""
    found = [measure(*example.maps[kind]) for kind in kinds if kind in example.maps]
    known = [value for value in found if value is not None]
    return float(np.mean(known)) if known else None


def _first(*values: float | None) -> float | None:
    return next((value for value in values if value is not None), None)


def _grey(picture: Pixels) -> Pixels:
    """H x W: the mean of the channels of a map that is drawn in grey."""
    grey: Pixels = np.rint(picture.mean(2)).astype(np.uint8)
    return grey


METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(name="f1", title="F1", better="higher", measure=_f1),
        Metric(name="rmse", title="RMSE", better="lower", measure=_rmse),
        Metric(name="iou", title="IoU", better="higher", measure=_iou),
        Metric(name="angular_error", title="Angle (deg)", better="lower", measure=_angular_error),
        Metric(name="pck", title="PCK", better="higher", measure=_pck),
        Metric(name="ssim", title="SSIM", better="higher", measure=_of_pictures(pixels.ssim)),
        Metric(name="psnr", title="PSNR", better="higher", measure=_of_pictures(pixels.psnr)),
        Metric(name="lpips", title="LPIPS", better="lower", measure=_lpips, network="vgg"),
        Metric(name="clip_score", title="CLIP-Score", better="higher", measure=_clip_score, network="clip"),
        Metric(name="dino", title="DINOv2", better="higher", measure=_dino, network="dino"),
        Metric(name="clip_i", title="CLIP-I", better="higher", measure=_clip_i, network="clip"),
        Metric(name="clip_t", title="CLIP-T", better="higher", measure=_clip_t, network="clip"),
        Metric(name="text", title="text", better="higher", measure=_text_consistency, network="clip"),
        Metric(name="style", title="image", better="higher", measure=_style_consistency, network="clip"),
    )
}

_PYIQA = (
    "of the libraries only pyiqa has it, which installs opencv-python over opencv-python-headless and is not licensed "
    "for commercial use"
)
ABSENT: Mapping[str, str] = {"MAN-IQA": _PYIQA, "MUSIQ": _PYIQA}
"""Metrics of the paper that are not computed, and why."""

"""A graph with something of everything that the viewer shows: failures, variants, styles, versions, hostile texts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np

from graphbuild.annotators.base import Annotator, Derived, Request, each
from graphbuild.annotators.canny import Canny
from graphbuild.annotators.grabcut import Grabcut
from graphbuild.annotators.style_picker import StylePicker
from graphbuild.contracts import RunReport
from tests.support.annotators import build, complete, write_photos

HOSTILE_NAME = "<img src=x onerror=alert(1)>.jpg"
HOSTILE_CAPTION = (
    "<script>document.title='taken'</script> \x1b[31mred\x1b[0m \u202egnp.exe\u202c 'quoted\" &amp; {{ 7 * 7 }} "
    "line\nbreak \u05e9\u05dc\u05d5\u05dd " + "long " * 2000
)


@dataclass(frozen=True, kw_only=True)
class Toned(Annotator):
    """The picture in the colours of a style reference: means and spreads of Lab (Reinhard et al., 2001)."""

    needs: ClassVar[tuple[Any, ...]] = ("image", each("style_reference"))
    makes: ClassVar[tuple[str, ...]] = ("style_content",)

    def annotate(self, batch: Sequence[Request], model: Any) -> list[Derived]:
        return [Derived({"style_content": toned(*self._pictures(request))}, score=0.5) for request in batch]

    def _pictures(self, request: Request) -> list[Any]:
        return [request.inputs[kind].array() for kind in ("image", "style_reference")]


def toned(picture: Any, style: Any) -> Any:
    """`picture` with the colours of `style`, both H x W x 3 RGB uint8."""
    own, other = (cv2.cvtColor(each, cv2.COLOR_RGB2LAB).astype(float) for each in (picture, style))
    (mean, spread), (to_mean, to_spread) = ((lab.mean((0, 1)), lab.std((0, 1))) for lab in (own, other))
    lab = (own - mean) / np.maximum(spread, 1) * to_spread + to_mean
    return cv2.cvtColor(np.clip(np.rint(lab), 0, 255).astype(np.uint8), cv2.COLOR_LAB2RGB)


@dataclass(frozen=True, kw_only=True)
class Fragile(Annotator):
    """Lines, except of wide pictures: a failure that may be another one's next time."""

    makes: ClassVar[tuple[str, ...]] = ("hed",)

    def annotate(self, batch: Sequence[Request], model: Any) -> list[Any]:
        return [self._one(request.inputs["image"].array()) for request in batch]

    def _one(self, picture: Any) -> Any:
        if picture.shape[1] > 1.2 * picture.shape[0]:
            return RuntimeError(f"too wide: {picture.shape[1]} x {picture.shape[0]} <b>pixels</b>")
        return Derived({"hed": cv2.GaussianBlur(cv2.Canny(picture, 80, 160), (5, 5), 1)}, score=float(picture.mean()))


def viewed_graph(folder: Path) -> Path:
    """A graph of 12 photographs, one of them with a hostile name and caption, one damaged, one twice."""
    photos = write_photos(folder / "photos", range(10))
    shutil.copy(photos / "p00.jpg", photos / HOSTILE_NAME)
    shutil.copy(photos / "p04.jpg", photos / "p04-again.jpg")
    (photos / "damaged.jpg").write_bytes((photos / "p02.jpg").read_bytes()[:900])
    rows = [{"file_name": f"p0{n}.{'png' if n % 2 else 'jpg'}", "caption": f"Photograph {n}."} for n in range(10)]
    rows.append({"file_name": HOSTILE_NAME, "caption": HOSTILE_CAPTION})
    (photos / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    styles, out = write_photos(folder / "styles", (3, 8, 11, 14)), folder / "graph"
    _run(photos, out, Canny(low=20, high=60), shard_size=4)
    everything = [
        Canny(),
        "lsd",
        Grabcut(smallest=0),
        "source_caption",
        StylePicker(folder=str(styles), variants=2),
        Toned(),
        Fragile(),
    ]
    _run(photos, out, *everything)
    return out


def _run(photos: Path, out: Path, *annotators: Annotator | str, **options: Any) -> RunReport:
    return complete(build(photos, out, annotators, **options))


def training_folder(folder: Path) -> Path:
    """What `graphbuild-train` leaves: 40 steps, four validations, samples at two steps; one line is half written."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    lines = [
        {"step": n, "loss": 1 / n + 0.1 * rng.random(), "norm": 1.0, "rate": 1e-4, "seconds": 0.1} for n in range(1, 41)
    ]
    for step in (10, 20, 30, 40):
        levels, types = [0.02 * n + 1 / step for n in range(8)], {"condition": 0.3 + 1 / step, "restoration": 0.2}
        found = {"loss": 0.3 + 1 / step, "by_level": levels, "by_type": types, "tasks": 4}
        lines.append({"step": step, "validation": found})
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 41, "lo')
    for step in (20, 40):
        target = folder / "samples" / f"step-{step:08d}"
        target.mkdir(parents=True)
        picture = rng.integers(0, 255, (60, 200, 3), np.uint8)
        cv2.imwrite(str(target / "0000003-canny-to-image.png"), picture)
    return folder

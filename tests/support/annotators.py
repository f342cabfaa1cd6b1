"""Annotators and helpers that tests, Ray workers and subprocesses import alike."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
from numpy.typing import NDArray

from graphbuild.annotators.base import Annotator, Derived, Each, Request, Resources, Skip, each, parameter
from graphbuild.contracts import RunReport
from graphbuild.models.checkpoint import Checkpoint
from graphbuild.sources.base import Source

PHOTO_FILES = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "rocket.jpg",
    "camera.png",
    "coins.png",
    "ihc.png",
    "motorcycle_left.png",
)


def write_photos(folder: Path, numbers: Iterable[int]) -> Path:
    """Small crops of real photographs, `p00.jpg, p01.png, ...`; number n is always the same picture."""
    import skimage
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        rng = np.random.default_rng(number)
        name = PHOTO_FILES[number % len(PHOTO_FILES)]
        with Image.open(Path(skimage.__file__).parent / "data" / name) as photo:
            width, height = (int(side) for side in rng.integers(96, 160, 2))
            left, top = (
                int(rng.integers(0, full - side)) for full, side in zip(photo.size, (width, height), strict=True)
            )
            crop = photo.crop((left, top, left + width, top + height))
        crop.save(folder / f"p{number:02d}.{'png' if number % 2 else 'jpg'}", quality=92)
    return folder


def tree(out: Path, *folders: str) -> dict[str, str]:
    """Relative name -> sha256 of every file of a graph that has to be the same however it was built."""
    roots = [out / name for name in folders or ("items", "nodes", "edges", "lineage")]
    files = sorted(path for root in roots for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def published(out: Path) -> int:
    """How many parts a graph has; a run beside it only adds to these folders, so they can be listed meanwhile."""
    return sum(1 for folder in ("items", "nodes", "edges") for _ in (out / folder).rglob("*.parquet"))


def leftovers(out: Path) -> list[str]:
    """What is left of work under way."""
    return [str(path.relative_to(out)) for name in ("_tmp", "_staging") for path in (out / name).glob("*")]


def build(folder: Path | Source, out: Path | str, annotators: Sequence[Annotator | str], **options: Any) -> RunReport:
    """One run over a folder of photographs, or a source, inline unless told otherwise, without progress."""
    from rich.console import Console

    from graphbuild.engine.run import run
    from graphbuild.sources import resolve

    options.setdefault("executor", "inline")
    options.setdefault("console", Console(quiet=True))
    return run(
        folder if isinstance(folder, Source) else resolve("folder", path=str(folder)), annotators, out, **options
    )


def complete(report: RunReport) -> RunReport:
    """The report, which must say that nothing is left and nothing went wrong."""
    assert report.units_left == [] and report.errors == [], report
    return report


def _build_and_exit(
    folder: Path | Source, out: Path | str, annotators: Sequence[Annotator | str], options: dict[str, Any]
) -> None:
    os.environ.update(options.pop("environment", {}))
    complete(build(folder, out, annotators, **options))


def start(
    folder: Path | Source, out: Path | str, annotators: Sequence[Annotator | str], **options: Any
) -> ForkServerProcess:
    """`build` in a process of its own, started within milliseconds, that a test may kill. Its `environment` is that of
    the first one, with these variables."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["tests.support.annotators", "graphbuild.engine.run", "graphbuild.annotators.grabcut"]
    )
    process = context.Process(target=_build_and_exit, args=(folder, out, annotators, options))
    process.start()
    return process


def orders(tag: str) -> dict[str, str]:
    path = Path(os.environ["GRAPHBUILD_TEST_CONTROL"], f"{tag}.orders")
    lines = path.read_text().splitlines() if path.exists() else []
    return {key: what for what, key in (line.split(" ", 1) for line in lines)}


def calls(tag: str) -> list[str]:
    """Keys that annotators with this tag were called for, in any process."""
    path = Path(os.environ["GRAPHBUILD_TEST_CONTROL"], f"{tag}.log")
    return path.read_text().splitlines() if path.exists() else []


def log(tag: str, key: str) -> None:
    with open(Path(os.environ["GRAPHBUILD_TEST_CONTROL"], f"{tag}.log"), "a") as file:
        file.write(key + "\n")


def _edges(request: Request) -> NDArray[Any]:
    return cv2.Canny(request.inputs["image"].array(), 100, 200)


@dataclass(frozen=True, kw_only=True)
class Ordered(Annotator):
    """Does what the test orders for its tag: `fail`, `skip` or `kill` (its own process) on given keys."""

    makes: ClassVar[tuple[str, ...]] = ("canny",)
    tag: str

    def annotate(self, batch: Sequence[Request], model: Any) -> list[Derived | Skip]:
        return [self._one(request) for request in batch]

    def _one(self, request: Request) -> Derived | Skip:
        log(self.tag, request.item.key)
        order = orders(self.tag).get(request.item.key)
        if order == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if order == "fail":
            raise RuntimeError(f"cannot do {request.item.key}, see /var/log/some.log at 10:11:12")
        return Skip("nothing_here") if order == "skip" else Derived({"canny": _edges(request)})


@dataclass(frozen=True, kw_only=True)
class BatchOrdered(Ordered):
    """The same, eight requests at a time."""

    resources: Resources = Resources(batch_size=8)


@dataclass(frozen=True, kw_only=True)
class Slow(Annotator):
    """50 ms an item."""

    makes: ClassVar[tuple[str, ...]] = ("canny",)
    tag: str

    def annotate(self, batch: Sequence[Request], model: Any) -> list[Derived]:
        for request in batch:
            log(self.tag, request.item.key)
            time.sleep(0.05)
        return [Derived({"canny": _edges(request)}) for request in batch]


@dataclass(frozen=True, kw_only=True)
class TwoKinds(Annotator):
    """Two kinds at once; no mask for pictures that are wider than high."""

    makes: ClassVar[tuple[str, ...]] = ("canny", "foreground_mask")

    def annotate(self, batch: Sequence[Request], model: Any) -> list[Derived]:
        made = []
        for request in batch:
            edges = _edges(request)
            wide = edges.shape[1] > edges.shape[0]
            made.append(
                Derived({"canny": edges} if wide else {"canny": edges, "foreground_mask": edges == 0}, score=0.5)
            )
        return made


@dataclass(frozen=True, kw_only=True)
class Halves(Annotator):
    """A foreground mask for every picture: its left half, the larger one."""

    makes: ClassVar[tuple[str, ...]] = ("foreground_mask",)

    def annotate(self, batch: Sequence[Request], model: Any) -> list[Derived]:
        shapes = [request.inputs["image"].array().shape[:2] for request in batch]
        masks = [np.arange(width) <= width // 2 for _, width in shapes]
        return [
            Derived({"foreground_mask": np.tile(mask, (height, 1))})
            for mask, (height, _) in zip(masks, shapes, strict=True)
        ]


@dataclass(frozen=True, kw_only=True)
class Styles(Annotator):
    """A few variants of one picture: its colours rotated by the seed and scaled by the variant."""

    makes: ClassVar[tuple[str, ...]] = ("style_content",)
    variants: int = parameter(3, output=False)

    def annotate(self, batch: Sequence[Request], model: Any) -> list[Derived]:
        return [
            Derived({"style_content": self._style(request)}, attrs={"variant": request.variant}) for request in batch
        ]

    def _style(self, request: Request) -> NDArray[np.uint8]:
        picture = np.roll(request.inputs["image"].array(), request.seed % 7, axis=1)
        return (picture // (request.variant + 1)).astype(np.uint8)


@dataclass(frozen=True, kw_only=True)
class OfStyles(Annotator):
    """One child per variant, from two `each` parents."""

    needs: ClassVar[tuple[str | Each, ...]] = (each("style_content"), each("style_content.canny"))
    makes: ClassVar[tuple[str, ...]] = ("foreground_mask",)

    def annotate(self, batch: Sequence[Request], model: Any) -> list[Derived]:
        return [Derived({"foreground_mask": r.inputs["style_content.canny"].values() == 0}) for r in batch]


@dataclass(frozen=True, kw_only=True)
class Child(Annotator):
    """Made from `canny`."""

    needs: ClassVar[tuple[str | Each, ...]] = ("canny",)
    makes: ClassVar[tuple[str, ...]] = ("foreground_mask",)
    tag: str = ""

    def annotate(self, batch: Sequence[Request], model: Any) -> list[Derived]:
        for request in batch:
            if self.tag:
                log(self.tag + "-child", request.item.key)
        return [Derived({"foreground_mask": request.inputs["canny"].values() == 0}) for request in batch]


@dataclass(frozen=True, kw_only=True)
class SomeFail(Annotator):
    """Every variant of `percent` of the items fails, chosen by their number."""

    makes: ClassVar[tuple[str, ...]] = ("canny",)
    percent: int = 100
    variants: int = parameter(1, output=False)

    def annotate(self, batch: Sequence[Request], model: Any) -> list[Derived]:
        if any(request.item.item_ix * 37 % 100 < self.percent for request in batch):
            raise RuntimeError("no luck")
        return [Derived({"canny": _edges(request)}) for request in batch]


class OutOfMemoryError(RuntimeError):
    """Named as torch names its own."""


@dataclass(frozen=True, kw_only=True)
class Hungry(Annotator):
    """Runs out of memory for more than `fits` requests at once; logs how many it was given."""

    makes: ClassVar[tuple[str, ...]] = ("canny",)
    tag: str
    fits: int = 2
    resources: Resources = Resources(batch_size=8)

    def annotate(self, batch: Sequence[Request], model: Any) -> list[Derived]:
        log(self.tag, str(len(batch)))
        if len(batch) > self.fits:
            raise OutOfMemoryError("CUDA out of memory")
        return [Derived({"canny": _edges(request)}) for request in batch]


@dataclass(frozen=True, kw_only=True)
class Second(Annotator):
    """Another annotator of the picture."""

    makes: ClassVar[tuple[str, ...]] = ("lines",)

    def annotate(self, batch: Sequence[Request], model: Any) -> list[Derived]:
        return [Derived({"lines": _edges(request)}) for request in batch]


@dataclass(frozen=True, kw_only=True)
class OnDevice(Annotator):
    """Takes a moment on a sixth of a GPU, and logs the GPUs that its actor sees."""

    makes: ClassVar[tuple[str, ...]] = ("hed",)
    resources: Resources = Resources(gpus=1 / 6)
    tag: str = parameter("", output=False)

    def annotate(self, batch: Sequence[Request], model: Any) -> list[Derived]:
        time.sleep(1)
        log(self.tag, os.environ["CUDA_VISIBLE_DEVICES"])
        return [Derived({"hed": _edges(request)}) for request in batch]


@dataclass(frozen=True, kw_only=True)
class Third(Annotator):
    """And another one."""

    makes: ClassVar[tuple[str, ...]] = ("hed",)

    def annotate(self, batch: Sequence[Request], model: Any) -> list[Derived]:
        return [Derived({"hed": _edges(request)}) for request in batch]


@dataclass(frozen=True, kw_only=True)
class Answers(Annotator):
    """Some requests of a batch fail, and say so in their place."""

    makes: ClassVar[tuple[str, ...]] = ("canny",)
    tag: str
    resources: Resources = Resources(batch_size=8)

    def annotate(self, batch: Sequence[Request], model: Any) -> list[Derived | Skip | Exception]:
        log(self.tag, str(len(batch)))
        failed = RuntimeError("no answer")
        return [failed if r.item.item_ix % 3 == 0 else Derived({"canny": _edges(r)}) for r in batch]


@dataclass(frozen=True, kw_only=True)
class Weighted(Annotator):
    """Thresholds from a checkpoint; logs the process that loaded it."""

    makes: ClassVar[tuple[str, ...]] = ("canny",)
    model: str = parameter("tests/thresholds", output=False)
    tag: str = parameter("", output=False)

    def checkpoints(self) -> dict[str, Checkpoint]:
        return {"model": Checkpoint(self.model, licence="cc-by-nc-4.0", gigabytes=0.1)}

    def load(self, device: str) -> Any:
        if self.tag:
            log(self.tag, f"{os.getpid()} {device}")
        return json.loads((self.checkpoints()["model"].folder() / "config.json").read_text())

    def annotate(self, batch: Sequence[Request], model: Any) -> list[Derived]:
        return [Derived({"canny": cv2.Canny(r.inputs["image"].array(), model["low"], model["high"])}) for r in batch]


def cached_checkpoint(commit: str, low: int, model: str = "tests/thresholds") -> Path:
    """A commit of a repository in the Hugging Face cache, as `main`; what `models fetch` leaves behind."""
    folder = Path(os.environ["HF_HOME"], "hub", "models--" + model.replace("/", "--"))
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text(commit)
    snapshot = folder / "snapshots" / commit
    snapshot.mkdir(parents=True, exist_ok=True)
    (snapshot / "config.json").write_text(json.dumps({"low": low, "high": 2 * low}))
    (snapshot / "model.safetensors").write_bytes(b"not read")
    return folder


@dataclass(frozen=True, kw_only=True)
class Random(Annotator):
    """Other pixels on every call."""

    makes: ClassVar[tuple[str, ...]] = ("canny",)
    deterministic: ClassVar[bool] = False

    def annotate(self, batch: Sequence[Request], model: Any) -> list[Derived]:
        rng = np.random.default_rng()
        return [Derived({"canny": rng.random((16, 16)) < 0.5}) for _ in batch]


WRONG: dict[str, Callable[[], Any]] = {
    "none": lambda: None,
    "other_kind": lambda: Derived({"depth": np.zeros((4, 4), np.uint8)}),
    "float": lambda: Derived({"canny": np.zeros((4, 4))}),
    "grey": lambda: Derived({"canny": np.full((4, 4), 7, np.uint8)}),
    "colour": lambda: Derived({"canny": np.zeros((4, 4, 3), np.uint8)}),
    "empty": lambda: Derived({"canny": np.zeros((0, 4), np.uint8)}),
    "numpy_attrs": lambda: Derived({"canny": np.zeros((4, 4), np.uint8)}, attrs={"n": np.zeros(2)}),
    "nan_attrs": lambda: Derived({"canny": np.zeros((4, 4), np.uint8)}, attrs={"n": float("nan")}),
    "text_score": lambda: Derived({"canny": np.zeros((4, 4), np.uint8)}, score="high"),  # type: ignore[arg-type]
}
"""Results that break the contract, by name."""


@dataclass(frozen=True, kw_only=True)
class Wrong(Annotator):
    """The first item gets what `mode` names, the others a good result."""

    makes: ClassVar[tuple[str, ...]] = ("canny",)
    mode: str

    def annotate(self, batch: Sequence[Request], model: Any) -> list[Any]:
        return [WRONG[self.mode]() if r.item.item_ix == 0 else Derived({"canny": _edges(r)}) for r in batch]

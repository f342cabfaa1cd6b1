"""Every annotator of the library on tiny random checkpoints, and subject pairs to annotate."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from graphbuild.annotators import resolve
from graphbuild.annotators.base import Annotator, Resources
from graphbuild.contracts import RunReport
from tests.support import tiny_checkpoints_dense as dense
from tests.support import tiny_checkpoints_diffusion as diffusion
from tests.support import tiny_checkpoints_edges as edges
from tests.support import tiny_checkpoints_regions as regions
from tests.support import tiny_checkpoints_vlm as vlm
from tests.support import tiny_checkpoints_words as words
from tests.support.annotators import write_photos
from tests.support.subjects import canvas, parquet, png, row

TINY: dict[str, Callable[[Path], dict[str, Any]]] = {
    "hed": edges.tiny_hed,
    "lineart": edges.tiny_lineart,
    "scribble": lambda folder: {"threshold": 20.0},
    "mlsd": edges.tiny_mlsd,
    "depth_anything": dense.tiny_depth_anything,
    "marigold_normals": dense.tiny_marigold_normals,
    "vitpose": regions.tiny_vitpose,
    "oneformer": dense.tiny_oneformer,
    "ppocr": words.tiny_ppocr,
    "dis_flow": lambda folder: {"resolution": 64},
    "segformer_clothes": dense.tiny_clothes,
    "try_on": lambda folder: {"min_share": 0.0},
    "sam2": regions.tiny_sam2,
    "birefnet": dense.tiny_birefnet,
    "open_world": vlm.tiny_open_world,
    "vlm_caption": vlm.tiny_vlm_caption,
    "vlm_edits": vlm.tiny_vlm_edits,
    "vlm_background": vlm.tiny_vlm_background,
    "style_picker": diffusion.tiny_style_picker,
    "instant_style": diffusion.tiny_instant_style,
    "redux_style": diffusion.tiny_redux_style,
    "fill_edit": diffusion.tiny_fill_edit,
    "depth_edit": diffusion.tiny_depth_edit,
}
"""Annotator -> a function that writes its checkpoints into a folder and returns its parameters."""

OTHERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "pidinet": edges.tiny_pidinet,
    "teed": edges.tiny_teed,
    "dwpose": regions.tiny_dwpose,
    "grounding_dino": words.tiny_grounding_dino,
    "sam3": words.tiny_sam3,
    "lsd": lambda folder: {},
    "grabcut": lambda folder: {"smallest": 0},
}
"""Second annotators of a kind. They describe edits or references, as one run makes a kind of the image only once."""
OF_REFERENCES = ("teed", "dwpose", "grounding_dino")


def tiny_annotators(folder: Path) -> list[Annotator]:
    """One annotator for every kind that is stored, and the others on edits. They share two workers, each of which loads
    all models."""
    made = {name: make(folder / name) for name, make in TINY.items()}
    made |= {
        name: {**make(folder / name), "of": "reference" if name in OF_REFERENCES else "edit_global"}
        for name, make in OTHERS.items()
    }
    shared = Resources(batch_size=3)
    models = [resolve(name, {**config, "resources": shared}) for name, config in made.items()]
    return [resolve("canny"), resolve("canny", {"of": "edit_local"}), *models]


def write_pairs(folder: Path, count: int, side: int = 96) -> Path:
    """A Parquet shard of subject pairs made of crops of real photographs."""
    from PIL import Image

    photos = sorted(write_photos(folder / "photos", range(2 * count)).iterdir())
    squares = [Image.open(photo).convert("RGB").resize((side, side)) for photo in photos]
    pairs = [row(png(canvas(*squares[2 * number : 2 * number + 2], 8))) for number in range(count)]
    (folder / "data").mkdir()
    (folder / "data" / "train-00000.parquet").write_bytes(parquet(pairs))
    return folder


def annotate_pairs(pairs: Path, out: Path, annotators: Sequence[Annotator], **options: Any) -> RunReport:
    """One run over subject pairs, without progress."""
    from rich.console import Console

    from graphbuild.engine.run import run
    from graphbuild.sources import resolve as source

    options = {"shard_size": 2, "console": Console(quiet=True), "flush_s": 0.5, **options}
    return run(source("subjects200k", path=str(pairs)), annotators, out, **options)


def start_pairs(pairs: Path, out: Path, annotators: Sequence[Annotator], **options: Any) -> ForkServerProcess:
    """`annotate_pairs` in a process of its own that a test may kill."""
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=annotate_pairs, args=(pairs, out, annotators), kwargs=options)
    process.start()
    return process

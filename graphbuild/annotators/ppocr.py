"""Lines of text in pictures: where they are, and what they say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from graphbuild.annotators.base import Condition, Derived, Request, Resources, Side, Skip, parameter
from graphbuild.config.strict_yaml import Share
from graphbuild.images.codecs import Pixels
from graphbuild.images.rendering import drawn_colours
from graphbuild.models.checkpoint import Checkpoint
from graphbuild.models.device import frozen, hide_loading_bars
from graphbuild.models.resizing import HEIGHT_WIDTH_RGB, picture_at, working_size

DETECTOR, READER = "PaddlePaddle/PP-OCRv5_mobile_det_safetensors", "PaddlePaddle/PP-OCRv5_mobile_rec_safetensors"
_MASK_THRESHOLD = 0.3
_MOST_LINES = 255
_LINES_AT_ONCE = 16
_UPRIGHT = 1.5
"""A line that is so many times as high as wide is read from its left side, as PaddleOCR does."""

Box = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class OcrNetworks:
    """The detector of lines and the reader of one, on their device, each with its image processor."""

    detector: Any
    detector_processor: Any
    reader: Any
    reader_processor: Any
    device: str


@dataclass(frozen=True, kw_only=True)
class Ppocr(Condition):
    """Lines of text as named boxes: the label is what a line says (C. Cui et al., "PaddleOCR 3.0 Technical Report",
    arXiv 2507.05595).

    Boxes are upright, in whole pixels, from top to bottom, in colours that the request's seed draws; at most 255. Their
    score is how sure the reader is, and the picture's score the mean of those (0..1).

    Args:
        model: a detector of text lines of the PP-OCR family in transformers: a hub repository (`org/name` or
            `org/name@commit`) or a local folder.
        reader: the same for a reader of lines.
        box_threshold: least score of a line as a place with text (0..1).
        text_threshold: least score of what it says (0..1).
        resolution: long side in pixels at which lines are looked for, a multiple of 32.

    Skips with `no_text`.
    """

    makes: ClassVar[tuple[str, ...]] = ("text_lines",)
    item_facts: ClassVar[tuple[str, ...]] = ()
    libraries: ClassVar[tuple[str, ...]] = ("torch", "torchvision", "transformers")
    model: str = parameter(DETECTOR, output=False)
    reader: str = parameter(READER, output=False)
    box_threshold: Share = 0.6
    text_threshold: Share = 0.5
    resolution: Side = 960
    resources: Resources = Resources(memory_gb=3, batch_size=8)

    def checkpoints(self) -> Mapping[str, Checkpoint]:
        return {"model": _checkpoint(self.model, DETECTOR, 0.005), "reader": _checkpoint(self.reader, READER, 0.02)}

    def load(self, device: str) -> OcrNetworks:
        from transformers import AutoImageProcessor, AutoModelForObjectDetection, AutoModelForTextRecognition

        hide_loading_bars()
        folders = {name: checkpoint.folder() for name, checkpoint in self.checkpoints().items()}

        def loaded(auto: Any, name: str) -> tuple[Any, Any]:
            network = auto.from_pretrained(folders[name], use_safetensors=True, local_files_only=True)
            processor = AutoImageProcessor.from_pretrained(folders[name], local_files_only=True)  # type: ignore[no-untyped-call]
            return frozen(network, device, "float32"), processor

        detector, reader = loaded(AutoModelForObjectDetection, "model"), loaded(AutoModelForTextRecognition, "reader")
        return OcrNetworks(*detector, *reader, device)

    def annotate(self, batch: Sequence[Request], model: OcrNetworks) -> list[Derived | Skip]:
        import torch

        with torch.inference_mode():
            return [self._one(request, model) for request in batch]

    def _one(self, request: Request, model: OcrNetworks) -> Derived | Skip:
        picture = request.inputs["image"].array()
        boxes = self._lines(picture, model)
        read = zip(boxes, _read([_cut(picture, box) for box in boxes], model), strict=True)
        found = [(box, text, score) for box, (text, score) in read if text and score >= self.text_threshold]
        if not found:
            return Skip("no_text")
        colours = drawn_colours(len(found), request.seed)
        lines = [
            {"label": text, "box": list(box), "score": round(min(score, 1.0), 4), "colour": colour}
            for (box, text, score), colour in zip(found, colours, strict=True)
        ]
        document = {"width": picture.shape[1], "height": picture.shape[0], "boxes": lines}
        return Derived({"text_lines": document}, score=float(np.mean([line["score"] for line in lines])))

    def _lines(self, picture: Pixels, model: OcrNetworks) -> list[Box]:
        """Left, top, right, bottom in pixels of the lines, from top to bottom."""
        import torch

        size = working_size(picture, short=self.resolution, long=self.resolution, multiple=32)
        # Its own resizing, which cannot be switched off, then leaves the picture as it is.
        limit = {"limit_side_len": max(size), "limit_type": "max"}
        inputs = model.detector_processor(picture_at(picture, size), **limit, **HEIGHT_WIDTH_RGB)
        output = model.detector(pixel_values=inputs["pixel_values"].to(model.device))
        [found] = model.detector_processor.post_process_object_detection(
            output,
            threshold=_MASK_THRESHOLD,
            box_threshold=self.box_threshold,
            target_sizes=torch.tensor([picture.shape[:2]]),
        )
        corners = found["boxes"].cpu().numpy().reshape(-1, 4, 2).astype(int)  # of slanted lines, too
        sides = np.concatenate([corners.min(1), corners.max(1)], 1).tolist()
        boxes = sorted({(top, left, right, bottom) for left, top, right, bottom in sides})
        whole = [(left, top, right, bottom) for top, left, right, bottom in boxes if left < right and top < bottom]
        return whole[:_MOST_LINES]


def _read(lines: Sequence[Pixels], model: OcrNetworks) -> list[tuple[str, float]]:
    """What each line says, and how sure that is, 0..1."""
    found: list[tuple[str, float]] = []
    for start in range(0, len(lines), _LINES_AT_ONCE):
        inputs = model.reader_processor(list(lines[start : start + _LINES_AT_ONCE]), **HEIGHT_WIDTH_RGB)
        output = model.reader(pixel_values=inputs["pixel_values"].to(model.device))
        texts = model.reader_processor.post_process_text_recognition(output)
        found += [(each["text"].strip(), float(each["score"])) for each in texts]
    return found


def _cut(picture: Pixels, box: Box) -> Pixels:
    left, top, right, bottom = box
    line = picture[top:bottom, left:right]
    return (
        np.rot90(line) if line.shape[0] >= _UPRIGHT * line.shape[1] else line
    ).copy()  # torch warns of read-only ones


def _checkpoint(model: str, default: str, gigabytes: float) -> Checkpoint:
    """Licence and size are known for the default repository alone."""
    known = model.partition("@")[0] == default
    return Checkpoint(model, licence="apache-2.0", gigabytes=gigabytes) if known else Checkpoint(model)

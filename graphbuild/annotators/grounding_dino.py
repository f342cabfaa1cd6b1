"""Boxes of named things."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from graphbuild.annotators.base import Condition, Derived, Each, Request, Resources, Side, Skip, parameter
from graphbuild.config.strict_yaml import Share
from graphbuild.images.codecs import Pixels
from graphbuild.images.rendering import drawn_colours
from graphbuild.models.checkpoint import Checkpoint
from graphbuild.models.device import Dtype, frozen, hide_loading_bars, torch_dtype
from graphbuild.models.resizing import HEIGHT_WIDTH_RGB, picture_at, working_size

MODEL = "IDEA-Research/grounding-dino-tiny"


@dataclass(frozen=True, slots=True)
class GroundingNetwork:
    """Grounding DINO on its device, with its image processor and tokenizer."""

    network: Any
    processor: Any
    tokenizer: Any
    device: str


@dataclass(frozen=True, kw_only=True)
class GroundingDino(Condition):
    """Boxes of the things that `names` or a caption mention, a hundred times cheaper than `open_world` (S. Liu et al.,
    "Grounding DINO: Marrying DINO with Grounded Pre-Training for Open-Set Object Detection", arXiv 2303.05499).

    A box's label is the name of the word that it answers best; in a caption, that word and those beside it that it
    answers with at least `text_threshold`. Of boxes that overlap by an IoU over `nms` the best is kept. Boxes have
    whole pixels, are cut at the picture's edge, and have colours that the request's seed draws. The score is the best
    box's (0..1).

    Args:
        model: a hub repository (`org/name` or `org/name@commit`) or a local folder: Grounding DINO or its relative of
            MMDetection.
        names: what to look for, such as `[dog, "traffic light"]`, about 60 at most; none: what the `caption` of the
            item says.
        box_threshold: least score of a box (0..1).
        text_threshold: least score of a word beside the best, in a caption (0..1).
        nms: greatest IoU of two boxes (0..1).
        max_objects: the best ones are kept.
        resolution: short side in pixels at which the network works; the long one is at most 5/3 of that, and both are
            multiples of 32.
        dtype: precision of weights and activations.

    Skips with `no_objects`.
    """

    makes: ClassVar[tuple[str, ...]] = ("boxes",)
    item_facts: ClassVar[tuple[str, ...]] = ()
    libraries: ClassVar[tuple[str, ...]] = ("torch", "torchvision", "transformers")
    model: str = parameter(MODEL, output=False)
    names: tuple[str, ...] = ()
    box_threshold: Share = 0.3
    text_threshold: Share = 0.25
    nms: Share = 0.7
    max_objects: Annotated[int, Field(ge=1, le=255)] = 20
    resolution: Side = 800
    dtype: Dtype = "float32"
    resources: Resources = Resources(memory_gb=5, batch_size=4)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.names:
            if not name.strip() or "." in name:
                raise ValueError(f"names: {name!r}; allowed: words without full stops")

    def reads(self) -> tuple[str | Each, ...]:
        return self.needs if self.names else (*self.needs, "caption")

    def checkpoints(self) -> Mapping[str, Checkpoint]:
        return {"model": Checkpoint(MODEL, licence="apache-2.0", gigabytes=0.69).at(self.model)}

    def load(self, device: str) -> GroundingNetwork:
        from transformers import AutoImageProcessor, AutoModelForZeroShotObjectDetection, AutoTokenizer

        hide_loading_bars()
        folder, local = self.checkpoints()["model"].folder(), {"local_files_only": True}
        network = AutoModelForZeroShotObjectDetection.from_pretrained(folder, use_safetensors=True, **local)
        processor = AutoImageProcessor.from_pretrained(folder, **local)  # type: ignore[no-untyped-call]
        tokenizer = AutoTokenizer.from_pretrained(folder, **local)
        return GroundingNetwork(frozen(network, device, self.dtype), processor, tokenizer, device)

    def annotate(self, batch: Sequence[Request], model: GroundingNetwork) -> list[Derived | Skip]:
        return [self._one(request, model) for request in batch]

    def _one(self, request: Request, model: GroundingNetwork) -> Derived | Skip:
        picture = request.inputs["image"].array()
        text = _text(self.names) if self.names else request.inputs["caption"].text.lower().strip()
        boxes, words, spans = self._found(picture, text, model)
        height, width = picture.shape[:2]
        objects: list[dict[str, Any]] = []
        for box, scores in zip(_in_pixels(boxes, width, height), words, strict=True):
            label = _label(text, spans, scores, 1.0 if self.names else self.text_threshold, whole=bool(self.names))
            if label and box[0] < box[2] and box[1] < box[3]:
                objects.append({"label": label, "box": box, "score": round(float(scores.max()), 4)})
        if not objects:
            return Skip("no_objects")
        for each, colour in zip(objects, drawn_colours(len(objects), request.seed), strict=True):
            each["colour"] = colour
        document = {"width": width, "height": height, "boxes": objects}
        return Derived({"boxes": document}, score=objects[0]["score"])

    def _found(
        self, picture: Pixels, text: str, model: GroundingNetwork
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], list[tuple[int, int]]]:
        """Boxes, best first, N x 4 (left, top, right, bottom, as shares of the picture); the score of every token for
        each, N x T; and which characters of the text each token stands for."""
        import torch
        from torchvision.ops import nms

        size = working_size(picture, short=self.resolution, long=round(self.resolution * 5 / 3), multiple=32)
        pixels = model.processor(picture_at(picture, size), do_resize=False, **HEIGHT_WIDTH_RGB)
        longest = model.network.config.max_text_len
        tokens = model.tokenizer(
            text, return_tensors="pt", return_offsets_mapping=True, return_token_type_ids=True, truncation=True,
            max_length=longest,
        )  # fmt: skip
        spans = [(int(start), int(stop)) for start, stop in tokens.pop("offset_mapping")[0]]
        with torch.inference_mode():
            output = model.network(
                pixel_values=pixels["pixel_values"].to(model.device, torch_dtype(self.dtype)),
                pixel_mask=pixels["pixel_mask"].to(model.device),
                **{name: value.to(model.device) for name, value in tokens.items()},
            )
        words = output.logits[0, :, : len(spans)].float().sigmoid().cpu()
        middle, half = output.pred_boxes[0, :, :2].float().cpu(), output.pred_boxes[0, :, 2:].float().cpu() / 2
        boxes, scores = torch.cat([middle - half, middle + half], 1), words.max(1).values
        sure = (scores >= self.box_threshold).nonzero()[:, 0]
        kept = sure[nms(boxes[sure], scores[sure], self.nms)][: self.max_objects]
        return boxes[kept].numpy(), words[kept].numpy(), spans


def _text(names: Sequence[str]) -> str:
    """Names as the network was trained to read them."""
    return " ".join(f"{name.strip().lower()}." for name in names)


def _label(
    text: str, spans: Sequence[tuple[int, int]], scores: NDArray[np.float32], threshold: float, *, whole: bool
) -> str:
    """The words of the text that a box answers: those around the token with the best score.

    Args:
        spans: the characters of each token; (0, 0) for what stands for none.
        scores: of each token, 0..1.
        threshold: least score of the tokens beside the best.
        whole: take everything up to the next full stop on both sides instead.
    """
    best = int(np.argmax(scores))
    start, stop = spans[best]
    if start == stop or not text[start:stop].strip(" .,"):
        return ""
    if whole:
        return text[text.rfind(".", 0, start) + 1 : text.find(".", stop)].strip()
    first = last = best
    while first > 0 and _joins(text, spans[first - 1], scores[first - 1], threshold):
        first -= 1
    while last + 1 < len(spans) and _joins(text, spans[last + 1], scores[last + 1], threshold):
        last += 1
    left, right = spans[first][0], spans[last][1]
    before, after = re.search(r"\w*$", text[:left]), re.match(r"\w*", text[right:])
    return f"{before[0] if before else ''}{text[left:right]}{after[0] if after else ''}"


def _joins(text: str, span: tuple[int, int], score: float, threshold: float) -> bool:
    word = text[slice(*span)]
    return score >= threshold and any(letter.isalnum() for letter in word)


def _in_pixels(boxes: NDArray[np.float32], width: int, height: int) -> list[list[int]]:
    most = np.array([width, height] * 2)
    corners: list[list[int]] = np.clip(np.rint(boxes * most), 0, most).astype(int).tolist()
    return corners

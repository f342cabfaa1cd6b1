"""Regions of a picture by SAM 2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
from pydantic import Field

from graphbuild.annotators.base import Condition, Derived, Request, Resources, Skip, parameter
from graphbuild.config.strict_yaml import Share
from graphbuild.images.codecs import Pixels
from graphbuild.images.rendering import drawn_colours
from graphbuild.models.checkpoint import Checkpoint
from graphbuild.models.device import Dtype
from graphbuild.models.sam2 import MODEL, PROMPTS_AT_ONCE, Sam2Network, enlarged, load_sam2, sam2_checkpoint

if TYPE_CHECKING:
    import torch

_MOST_REGIONS = 255
_STABILITY_OFFSET = 1.0
_UNCOVERED = [255, 255, 255]


@dataclass(frozen=True, kw_only=True)
class Sam2(Condition):
    """Regions without classes (N. Ravi et al., "SAM 2: Segment Anything in Images and Videos", arXiv 2408.00714).

    Each point of a regular grid prompts three masks. Masks with a high predicted IoU that are stable under another
    threshold are kept, near-duplicates removed, and painted into one label map: larger ones first, so that small ones
    lie above them. 0 is what no region covers. The picture is stretched to the square of the checkpoint (1024
    pixels), masks come at a quarter of that and their logits are enlarged bilinearly to the size of the picture.

    What no region covers is white and regions have random colours, as in Graph200K; the request's seed draws them.
    Attrs: `palette`, and `dropped`, the number of regions beyond 255, those with the lowest score. The score is the
    share of the picture that regions cover (0..1).

    Args:
        model: a hub repository (`org/name` or `org/name@commit`) or a local folder.
        points_per_side: of the grid.
        pred_iou_thresh: least IoU with the true mask that the network expects of its own (0..1).
        stability_score_thresh: least IoU between the masks cut at logits +1 and -1 (0..1).
        box_nms_thresh: of two masks whose boxes have a larger IoU than this, the one with the higher score is kept.
        min_region_area: least share of the picture (0..1) that a region covers.
        dtype: precision of weights and activations.
        compile: compile the image encoder.

    Skips with `no_segments` where nothing passes.
    """

    makes: ClassVar[tuple[str, ...]] = ("segments",)
    item_facts: ClassVar[tuple[str, ...]] = ()
    code_version: ClassVar[int] = 2
    libraries: ClassVar[tuple[str, ...]] = ("torch", "torchvision", "transformers")
    model: str = parameter(MODEL, output=False)
    points_per_side: Annotated[int, Field(ge=1, le=256)] = 32
    pred_iou_thresh: Share = 0.8
    stability_score_thresh: Share = 0.95
    box_nms_thresh: Share = 0.7
    min_region_area: Share = 0.0002
    dtype: Dtype = "float32"
    compile: bool = parameter(False, output=False)
    resources: Resources = Resources(memory_gb=8, batch_size=4)

    def checkpoints(self) -> Mapping[str, Checkpoint]:
        return {"model": sam2_checkpoint(self.model)}

    def load(self, device: str) -> Sam2Network:
        return load_sam2(self.checkpoints()["model"].folder(), device, self.dtype, compiled=self.compile)

    def annotate(self, batch: Sequence[Request], model: Sam2Network) -> list[Derived | Skip]:
        import torch

        pictures = [request.inputs["image"].array() for request in batch]
        with torch.inference_mode():
            embedded = model.embedded(pictures)
            return [self._one(model, maps, request) for maps, request in zip(embedded, batch, strict=True)]

    def _one(self, model: Sam2Network, embedded: list[torch.Tensor], request: Request) -> Derived | Skip:
        logits, dropped = self._regions(model, embedded)
        labels = _label_map(logits, *request.inputs["image"].array().shape[:2])
        if not labels.any():
            return Skip("no_segments")
        palette = [_UNCOVERED, *drawn_colours(int(labels.max()), request.seed)]
        attrs = {"palette": palette, "dropped": dropped}
        return Derived({"segments": labels}, score=float((labels > 0).mean()), attrs=attrs)

    def _regions(self, model: Sam2Network, embedded: list[torch.Tensor]) -> tuple[torch.Tensor, int]:
        """Mask logits of the regions, N x h x w, best first, and how many more there were."""
        import torch
        from torchvision.ops import nms

        points = _grid(self.points_per_side, model.side).to(model.device)
        chunks = (points[start : start + PROMPTS_AT_ONCE] for start in range(0, len(points), PROMPTS_AT_ONCE))
        kept = [self._trusted(*model.prompted(embedded, input_points=chunk[None, :, None])) for chunk in chunks]
        logits, scores = (torch.cat(each) for each in zip(*kept, strict=True))
        if not len(logits):
            return logits, 0
        order = nms(_boxes(logits > 0), scores, self.box_nms_thresh)
        return logits[order[:_MOST_REGIONS]], max(0, len(order) - _MOST_REGIONS)

    def _trusted(self, logits: torch.Tensor, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits, scores = logits.flatten(0, 1), scores.flatten()
        trusted = scores > self.pred_iou_thresh
        logits, scores = logits[trusted], scores[trusted]
        least, area, most = ((logits > level).flatten(1).sum(1) for level in (_STABILITY_OFFSET, 0, -_STABILITY_OFFSET))
        stable = least > self.stability_score_thresh * most
        large = area > self.min_region_area * logits[0].numel() if len(logits) else stable
        return logits[stable & large], scores[stable & large]


def _grid(per_side: int, side: int) -> torch.Tensor:
    """The centres of per_side x per_side equal cells of a square, x and y in pixels."""
    import torch

    along = (torch.arange(per_side) + 0.5) * (side / per_side)
    return torch.cartesian_prod(along, along)


def _boxes(masks: torch.Tensor) -> torch.Tensor:
    """Left, top, right, bottom of each of N x h x w non-empty masks, N x 4 float32."""
    import torch

    spans = []
    for across in (masks.any(1), masks.any(2)):
        filled = across.int()
        spans.append((filled.argmax(1), across.shape[1] - filled.flip(1).argmax(1)))
    (left, right), (top, bottom) = spans
    return torch.stack([left, top, right, bottom], 1).float()


def _label_map(logits: torch.Tensor, height: int, width: int) -> Pixels:
    """H x W uint8: the largest mask is 1, later ones lie above earlier ones; hidden ones have no number."""
    labels = np.zeros((height, width), np.uint8)
    areas = (logits > 0).flatten(1).sum(1)
    for number, at in enumerate(areas.argsort(descending=True, stable=True).tolist(), 1):
        labels[enlarged(logits[at], height, width)] = number
    shown = np.bincount(labels.ravel(), minlength=256) > 0
    shown[0] = True
    return (np.cumsum(shown) - 1).astype(np.uint8)[labels]

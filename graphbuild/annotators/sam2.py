"""Regions of a picture, and masks of boxes in it, by SAM 2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from graphbuild.annotators.base import Condition, Derived, Request, Resources, Skip, parameter
from graphbuild.images.codecs import Pixels
from graphbuild.images.rendering import distinct_colours
from graphbuild.models.checkpoint import Checkpoint
from graphbuild.models.device import Dtype, frozen, hide_loading_bars, torch_dtype

if TYPE_CHECKING:
    import torch

MODEL = "facebook/sam2.1-hiera-large"

_PROMPTS_AT_ONCE = 64
_MOST_REGIONS = 255
_STABILITY_OFFSET = 1.0
_UNCOVERED = [255, 255, 255]


@dataclass(frozen=True, slots=True)
class Sam2Network:
    """SAM 2 on its device.

    Attributes:
        network: transformers' `Sam2Model`.
        processor: its image processor, which stretches a picture to the square that the network works at.
        device: where it runs; `dtype`: its precision.
    """

    network: Any
    processor: Any
    device: str
    dtype: Dtype

    def embedded(self, pictures: Sequence[Pixels]) -> list[list[torch.Tensor]]:
        """What the image encoder makes of each picture (H x W x 3 RGB uint8): feature maps, each of batch size 1."""
        pixels = self.processor([np.array(picture) for picture in pictures], return_tensors="pt")["pixel_values"]
        maps = self.network.get_image_embeddings(pixels.to(self.device, torch_dtype(self.dtype)))
        return [[level[at : at + 1] for level in maps] for at in range(len(pictures))]

    def prompted(self, embedded: list[torch.Tensor], **prompts: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Mask logits (N x K x h x w float32, inside above 0) and the IoU the network expects of each (N x K), for N
        prompts."""
        output = self.network(image_embeddings=embedded, **prompts)
        return output.pred_masks[0].float(), output.iou_scores[0].float()

    @property
    def side(self) -> int:
        """Side in pixels of the square; prompts are given in its coordinates."""
        return int(self.processor.size["height"])


def load_sam2(folder: Path, device: str, dtype: Dtype, *, compiled: bool = False) -> Sam2Network:
    """SAM 2 from a folder in transformers' format, `facebook/sam2.1-hiera-*` or a copy.

    Args:
        compiled: compile the image encoder on its first call.
    """
    import torch
    from transformers import Sam2Config, Sam2ImageProcessor, Sam2Model

    hide_loading_bars()
    # The published files are of the video model, of which this is a part; `from_pretrained` would warn of that.
    described, _ = Sam2Config.get_config_dict(folder, local_files_only=True)
    config = Sam2Config.from_dict(described)
    network = Sam2Model.from_pretrained(folder, config=config, use_safetensors=True, local_files_only=True)
    network = frozen(network, device, dtype)
    if compiled:
        network.vision_encoder = torch.compile(network.vision_encoder)
    return Sam2Network(network, Sam2ImageProcessor.from_pretrained(folder, local_files_only=True), device, dtype)


def masks_from_boxes(model: Sam2Network, picture: Pixels, boxes: Sequence[Sequence[float]]) -> NDArray[np.bool_]:
    """One mask for each box: what SAM 2 takes for the object in it.

    Args:
        picture: H x W x 3 RGB uint8.
        boxes: left, top, right, bottom in pixels of the picture.

    Returns:
        N x H x W, true inside; logits are enlarged bilinearly before they are cut at 0.
    """
    import torch

    height, width = picture.shape[:2]
    masks = np.zeros((len(boxes), height, width), bool)
    with torch.inference_mode():
        [embedded] = model.embedded([picture]) if boxes else [[]]
        scale = torch.tensor([model.side / width, model.side / height] * 2)
        for start in range(0, len(boxes), _PROMPTS_AT_ONCE):
            chunk = torch.tensor(np.asarray(boxes[start : start + _PROMPTS_AT_ONCE], np.float32)) * scale
            logits, _ = model.prompted(embedded, input_boxes=chunk[None].to(model.device), multimask_output=False)
            for at, one in enumerate(logits[:, 0], start):
                masks[at] = _enlarged(one, height, width)
    return masks


@dataclass(frozen=True, kw_only=True)
class Sam2(Condition):
    """Regions without classes (N. Ravi et al., "SAM 2: Segment Anything in Images and Videos", arXiv 2408.00714).

    A regular grid of points asks for three masks each. Those that the network trusts and that hold still under another
    threshold are kept, of near-equal ones the best, and painted into one label map: larger ones first, so that small
    ones lie above them. 0 is what no region covers. The picture is stretched to the square of the checkpoint (1024
    pixels), masks come at a quarter of that and their logits are enlarged bilinearly to the size of the picture.

    What no region covers is white, as in Graph200K. The largest region has the same colour in every picture, and so has
    the second. Attrs: `palette`, and `dropped`, the number of regions beyond 255, those with the lowest score. The
    score is the share of the picture that regions cover (0..1).

    Args:
        model: a hub repository (`org/name` or `org/name@commit`) or a local folder.
        points_per_side: of the grid.
        pred_iou_thresh: least IoU with the true mask that the network expects of its own (0..1).
        stability_score_thresh: least IoU between the masks cut at logits +1 and -1 (0..1).
        box_nms_thresh: of two masks whose boxes have a larger IoU than this the better is kept.
        min_region_area: least share of the picture (0..1) that a region covers.
        dtype: precision of weights and activations.
        compile: compile the image encoder.

    Skips with `no_segments` where nothing passes.
    """

    makes: ClassVar[tuple[str, ...]] = ("segments",)
    libraries: ClassVar[tuple[str, ...]] = ("torch", "torchvision", "transformers")
    model: str = parameter(MODEL, output=False)
    points_per_side: int = 32
    pred_iou_thresh: float = 0.8
    stability_score_thresh: float = 0.95
    box_nms_thresh: float = 0.7
    min_region_area: float = 0.0002
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
            return [self._one(model, maps, picture) for maps, picture in zip(embedded, pictures, strict=True)]

    def _one(self, model: Sam2Network, embedded: list[torch.Tensor], picture: Pixels) -> Derived | Skip:
        logits, dropped = self._regions(model, embedded)
        labels = _label_map(logits, *picture.shape[:2])
        if not labels.any():
            return Skip("no_segments")
        palette = [_UNCOVERED, *distinct_colours(int(labels.max()))]
        attrs = {"palette": palette, "dropped": dropped}
        return Derived({"segments": labels}, score=float((labels > 0).mean()), attrs=attrs)

    def _regions(self, model: Sam2Network, embedded: list[torch.Tensor]) -> tuple[torch.Tensor, int]:
        """Mask logits of the regions, N x h x w, best first, and how many more there were."""
        import torch
        from torchvision.ops import nms

        points = _grid(self.points_per_side, model.side).to(model.device)
        chunks = (points[start : start + _PROMPTS_AT_ONCE] for start in range(0, len(points), _PROMPTS_AT_ONCE))
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


def sam2_checkpoint(model: str) -> Checkpoint:
    """The checkpoint behind a name; of the published ones only the default's licence and size are known here."""
    known = model.partition("@")[0] == MODEL
    return Checkpoint(model, licence="apache-2.0", gigabytes=0.9) if known else Checkpoint(model)


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
        labels[_enlarged(logits[at], height, width)] = number
    shown = np.bincount(labels.ravel(), minlength=256) > 0
    shown[0] = True
    return (np.cumsum(shown) - 1).astype(np.uint8)[labels]


def _enlarged(logits: torch.Tensor, height: int, width: int) -> NDArray[np.bool_]:
    import torch

    size = (height, width)
    enlarged = torch.nn.functional.interpolate(logits[None, None], size, mode="bilinear", align_corners=False)
    inside: NDArray[np.bool_] = (enlarged[0, 0] > 0).cpu().numpy()
    return inside

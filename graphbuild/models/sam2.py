"""SAM 2: masks of points and boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from graphbuild.images.codecs import Pixels
from graphbuild.models.checkpoint import Checkpoint
from graphbuild.models.device import Dtype, frozen, hide_loading_bars, torch_dtype
from graphbuild.models.resizing import HEIGHT_WIDTH_RGB

if TYPE_CHECKING:
    import torch

MODEL = "facebook/sam2.1-hiera-large"
PROMPTS_AT_ONCE = 64


def sam2_checkpoint(model: str) -> Checkpoint:
    """The checkpoint behind a name; of the published ones only the default's licence and size are known here."""
    known = model.partition("@")[0] == MODEL
    return Checkpoint(model, licence="apache-2.0", gigabytes=0.9) if known else Checkpoint(model)


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
        pixels = self.processor([np.array(picture) for picture in pictures], **HEIGHT_WIDTH_RGB)["pixel_values"]
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
        for start in range(0, len(boxes), PROMPTS_AT_ONCE):
            chunk = torch.tensor(np.asarray(boxes[start : start + PROMPTS_AT_ONCE], np.float32)) * scale
            logits, _ = model.prompted(embedded, input_boxes=chunk[None].to(model.device), multimask_output=False)
            for at, one in enumerate(logits[:, 0], start):
                masks[at] = enlarged(one, height, width)
    return masks


def enlarged(logits: torch.Tensor, height: int, width: int) -> NDArray[np.bool_]:
    """The mask of h x w logits at another size, H x W: enlarged bilinearly, then cut at 0."""
    import torch

    size = (height, width)
    enlarged = torch.nn.functional.interpolate(logits[None, None], size, mode="bilinear", align_corners=False)
    inside: NDArray[np.bool_] = (enlarged[0, 0] > 0).cpu().numpy()
    return inside

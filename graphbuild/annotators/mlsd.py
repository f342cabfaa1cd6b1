"""Line segments of a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from graphbuild.annotators.base import Condition, Derived, Request, Resources, Side, Skip, parameter
from graphbuild.config.strict_yaml import Share
from graphbuild.models.checkpoint import Checkpoint
from graphbuild.models.controlnet_aux import HUB, at_resolution, fill, network_class
from graphbuild.models.device import frozen

if TYPE_CHECKING:
    import torch

REPOSITORIES = {"large": HUB, "tiny": "lllyasviel/ControlNet"}
CANDIDATES = 200
"""Segment centres looked at in each picture, the most certain ones."""


@dataclass(frozen=True, kw_only=True)
class Mlsd(Condition):
    """Straight line segments, white on black, one pixel wide (G. Gu et al., "Towards Light-weight and Real-time Line
    Segment Detection", arXiv 2106.00186): the sides of things and rooms, where `lsd` also follows texture.

    The score is the total segment length over the picture's diagonal.

    Args:
        model: a hub repository (`org/name` or `org/name@commit`), a local folder with `mlsd_<variant>_512_fp32.pth`,
            or that file; None for the repository that has the variant.
        variant: size of the network.
        certainty: segments with a lower score of their centre (0..1) are left out; 0.1 as in ControlNet.
        min_length: shorter segments are left out, as a fraction of the picture's diagonal.
        resolution: short side in pixels at which the network works, rounded with the long side to multiples of 64;
            the long side is at most four times as long. Segments are drawn at the picture's own size.
    """

    makes: ClassVar[tuple[str, ...]] = ("lines",)
    item_facts: ClassVar[tuple[str, ...]] = ()
    libraries: ClassVar[tuple[str, ...]] = ("torch", "controlnet_aux")
    model: str | None = parameter(None, output=False)
    variant: Literal["large", "tiny"] = "large"
    certainty: Share = 0.1
    min_length: Share = 0.0
    resolution: Side = 512
    resources: Resources = Resources(memory_gb=4, batch_size=8)

    def checkpoints(self) -> dict[str, Checkpoint]:
        published = REPOSITORIES[self.variant]
        model = self.model or published
        licence = "apache-2.0" if model.startswith(published) else "unknown"
        return {"model": Checkpoint(model, (f"*mlsd_{self.variant}_512_fp32.pth",), licence, 0.006)}

    def load(self, device: str) -> Any:
        network = network_class(f"mlsd.models.mbv2_mlsd_{self.variant}", f"MobileV2_MLSD_{self.variant.title()}")()
        fill(network, self.checkpoints()["model"])
        return frozen(network, device, "float32")

    def annotate(self, batch: Sequence[Request], model: Any) -> list[Derived | Skip]:
        pictures = [request.inputs["image"].array() for request in batch]
        found = at_resolution(pictures, self.resolution, lambda stack: self._segments(stack, model))
        return [self._draw(lines, *picture.shape[:2]) for lines, picture in zip(found, pictures, strict=True)]

    def _segments(self, stack: torch.Tensor, network: Any) -> list[NDArray[np.float32]]:
        """Ends of the segments in each picture, n x 4 (x, y, x, y), as fractions of its width and height."""
        import torch

        ones = torch.ones_like(stack[:, :1])  # the fourth channel the network was trained with
        out = network((torch.cat([stack, ones], dim=1) / 127.5 - 1).to(next(network.parameters()).device))
        centres, displacements = out[:, 0].sigmoid(), out[:, 1:5].flatten(2)
        height, width = centres.shape[1:]
        peaks = centres == torch.nn.functional.max_pool2d(centres, 3, stride=1, padding=1)
        # A straight edge has many equal peaks: a stable sort, because topk may choose others on another day.
        ranked, order = (centres * peaks).flatten(1).sort(descending=True, stable=True)
        scores, places = ranked[:, :CANDIDATES], order[:, :CANDIDATES]
        starts = torch.stack([places % width, places // width] * 2, dim=1)
        ends = starts + displacements.gather(2, places[:, None].expand(-1, 4, -1))
        fractions = ends / ends.new_tensor([width, height] * 2)[:, None]
        return [
            segments.T[score > self.certainty].cpu().numpy() for segments, score in zip(fractions, scores, strict=True)
        ]

    def _draw(self, fractions: NDArray[np.float32], height: int, width: int) -> Derived | Skip:
        import cv2

        diagonal = float(np.hypot(height, width))
        segments = fractions * np.array([width, height] * 2, np.float32)
        lengths = np.hypot(segments[:, 2] - segments[:, 0], segments[:, 3] - segments[:, 1])
        segments, lengths = (values[lengths >= self.min_length * diagonal] for values in (segments, lengths))
        if not len(segments):
            return Skip("no_lines")
        canvas = np.zeros((height, width), np.uint8)
        cv2.polylines(canvas, list(segments.round().astype(np.int32).reshape(-1, 2, 2)), False, 255, 1)
        return Derived({"lines": canvas}, float(lengths.sum()) / diagonal, {"num_lines": len(segments)})

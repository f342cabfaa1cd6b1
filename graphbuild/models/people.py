"""People in pictures: a detector, and keypoints of COCO in the form of pose documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphbuild.images.codecs import Pixels
from graphbuild.models.checkpoint import Checkpoint
from graphbuild.models.device import Dtype, frozen, hide_loading_bars, torch_dtype
from graphbuild.models.resizing import HEIGHT_WIDTH_RGB

DETECTOR = "PekingU/rtdetr_r50vd_coco_o365"

_FROM_COCO = (0, None, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)
"""For each of OpenPose's 18 keypoints its number among the 17 of COCO, which has no neck."""
_SHOULDERS = [5, 6]
BODY, WHOLE_BODY = 17, 133
"""How many keypoints COCO and COCO-WholeBody have."""
_PARTS = {"feet": (17, 23), "face": (23, 91), "left_hand": (91, 112), "right_hand": (112, 133)}
"""Where COCO-WholeBody (S. Jin et al., arXiv 2007.11858) has the parts beyond the body."""

Keypoints = list[list[float] | None]


@dataclass(frozen=True, slots=True)
class PeopleDetector:
    """A detector of transformers on its device, its image processor, and its number for people."""

    network: Any
    processor: Any
    person: int
    device: str
    dtype: Dtype = "float32"

    def boxes(self, pictures: Sequence[Pixels], threshold: float) -> list[NDArray[np.float32]]:
        """Boxes of the people in each picture that have at least this score, N x 4: left, top, width, height in its
        pixels; best first. Without gradients."""
        import torch

        with torch.inference_mode():
            inputs = self.processor([picture.copy() for picture in pictures], **HEIGHT_WIDTH_RGB)
            output = self.network(inputs["pixel_values"].to(self.device, torch_dtype(self.dtype)))
            output.logits, output.pred_boxes = output.logits.float(), output.pred_boxes.float()
            every = self.processor.post_process_object_detection(
                output, threshold=threshold, target_sizes=[picture.shape[:2] for picture in pictures]
            )
        corners = [found["boxes"][found["labels"] == self.person].cpu().numpy() for found in every]
        return [np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1) for boxes in corners]


def detector_checkpoint(model: str) -> Checkpoint:
    """Licence and size are known for the default repository alone."""
    known = model.partition("@")[0] == DETECTOR
    return Checkpoint(model, licence="apache-2.0", gigabytes=0.17) if known else Checkpoint(model)


def load_detector(checkpoint: Checkpoint, device: str, dtype: Dtype, *, compiled: bool = False) -> PeopleDetector:
    """
    Raises:
        ValueError: the detector does not know people.
    """
    from transformers import AutoImageProcessor, AutoModelForObjectDetection

    hide_loading_bars()
    folder = checkpoint.folder()
    network = AutoModelForObjectDetection.from_pretrained(folder, use_safetensors=True, local_files_only=True)
    processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)  # type: ignore[no-untyped-call]
    people = [number for number, name in network.config.id2label.items() if name == "person"]
    if not people:
        raise ValueError(f"detector: {checkpoint.model} has no class 'person'; allowed: a detector of people")
    return PeopleDetector(frozen(network, device, dtype, compiled=compiled), processor, people[0], device, dtype)


def person_of(points: NDArray[np.float64], width: int, height: int, threshold: float) -> dict[str, Keypoints]:
    """One person of a pose document from the keypoints of COCO, 17 x 3, or COCO-WholeBody, 133 x 3: x, y in pixels of
    the picture, and score. Points below the threshold or outside the picture are None; a part without any is left
    out."""
    person = {"keypoints": openpose(points[:BODY], width, height, threshold)}
    if len(points) == WHOLE_BODY:
        parts = {name: _points(points[start:stop], width, height, threshold) for name, (start, stop) in _PARTS.items()}
        person |= {name: part for name, part in parts.items() if any(part)}
    return person


def openpose(coco: NDArray[np.float64], width: int, height: int, threshold: float) -> Keypoints:
    """COCO's 17 keypoints in OpenPose's form.

    Args:
        coco: 17 x 3, x, y in pixels and score.
        width, height: of the picture; points outside are left out.
        threshold: least score.

    Returns:
        18 x [x, y, score], None where there is none. The neck is the mean of both shoulders, with the lower score.
    """
    neck = [*coco[_SHOULDERS, :2].mean(0), coco[_SHOULDERS, 2].min()]
    points = [neck if number is None else coco[number] for number in _FROM_COCO]
    return _points(points, width, height, threshold)


def scores_of(people: Sequence[dict[str, Keypoints]]) -> list[float]:
    """The scores of all keypoints that were found."""
    return [point[2] for person in people for part in person.values() for point in part if point]


def _points(points: Sequence[Any] | NDArray[Any], width: int, height: int, threshold: float) -> Keypoints:
    seen = [0 <= x < width and 0 <= y < height and score >= threshold for x, y, score in points]
    return [
        [round(float(x), 2), round(float(y), 2), round(min(float(score), 1.0), 4)] if there else None
        for (x, y, score), there in zip(points, seen, strict=True)
    ]

"""Keypoints of people by ViTPose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from graphbuild.annotators.base import Condition, Derived, Request, Resources, Skip, parameter
from graphbuild.images.codecs import Pixels
from graphbuild.models.checkpoint import Checkpoint
from graphbuild.models.device import Dtype, frozen, hide_loading_bars, torch_dtype
from graphbuild.models.resizing import HEIGHT_WIDTH_RGB
from graphbuild.strict_yaml import Share

MODEL = "usyd-community/vitpose-base-simple"
DETECTOR = "PekingU/rtdetr_r50vd_coco_o365"

_FROM_COCO = (0, None, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)
"""For each of OpenPose's 18 keypoints its number among the 17 of COCO, which has no neck."""
_SHOULDERS = [5, 6]

Keypoints = list[list[float] | None]

_AT_ONCE = 32
"""People looked at in one pass: a detector may find 300."""


@dataclass(frozen=True, slots=True)
class PoseNetworks:
    """A detector and ViTPose on their device, each with its image processor, and the detector's number for people."""

    detector: Any
    detector_processor: Any
    person: int
    network: Any
    processor: Any
    device: str


@dataclass(frozen=True, kw_only=True)
class Vitpose(Condition):
    """Body keypoints of people, in OpenPose's order (Y. Xu et al., "ViTPose: Simple Vision Transformer Baselines for
    Human Pose Estimation", arXiv 2204.12484; people found by RT-DETR, Y. Zhao et al., arXiv 2304.08069).

    The picture is stretched to the detector's square (640 pixels); each person found is cut out with a margin, brought
    to 256 x 192 bilinearly, and its keypoints are the peaks of heat maps of a quarter of that, refined below a pixel.
    The neck is the middle of the shoulders. The document's coordinates are rounded to 0.01 pixels; points outside the
    picture are left out. The score is the mean of those of the keypoints (0..1).

    Args:
        model: a checkpoint for the 17 keypoints of COCO: a hub repository (`org/name` or `org/name@commit`) or a local
            folder. Of ViTPose++ the COCO expert is used.
        detector: the same for an object detector of transformers with a class `person`.
        person_threshold: least score of a person (0..1).
        keypoint_threshold: least score of a keypoint (0..1).
        dtype: precision of weights and activations of both.
        compile: compile both networks.

    Skips with `no_person` where nobody is found, or nobody with a keypoint.
    """

    makes: ClassVar[tuple[str, ...]] = ("pose",)
    item_facts: ClassVar[tuple[str, ...]] = ()
    libraries: ClassVar[tuple[str, ...]] = ("torch", "torchvision", "transformers")
    model: str = parameter(MODEL, output=False)
    detector: str = parameter(DETECTOR, output=False)
    person_threshold: Share = 0.5
    keypoint_threshold: Share = 0.3
    dtype: Dtype = "float32"
    compile: bool = parameter(False, output=False)
    resources: Resources = Resources(memory_gb=4, batch_size=8)

    def checkpoints(self) -> Mapping[str, Checkpoint]:
        return {
            "model": _checkpoint(self.model, MODEL, gigabytes=0.34),
            "detector": _checkpoint(self.detector, DETECTOR, gigabytes=0.17),
        }

    def load(self, device: str) -> PoseNetworks:
        from transformers import (
            AutoImageProcessor,
            AutoModelForObjectDetection,
            VitPoseForPoseEstimation,
            VitPoseImageProcessor,
        )

        hide_loading_bars()
        folder, detector_folder = (checkpoint.folder() for checkpoint in self.checkpoints().values())
        options: dict[str, Any] = {"use_safetensors": True, "local_files_only": True}
        network = VitPoseForPoseEstimation.from_pretrained(folder, **options)
        detector = AutoModelForObjectDetection.from_pretrained(detector_folder, **options)
        detector_processor = AutoImageProcessor.from_pretrained(detector_folder, local_files_only=True)  # type: ignore[no-untyped-call]
        if network.config.num_labels != 17:
            raise ValueError(f"model: {self.model} finds {network.config.num_labels} keypoints; allowed: COCO's 17")
        people = [number for number, name in detector.config.id2label.items() if name == "person"]
        if not people:
            raise ValueError(f"detector: {self.detector} has no class 'person'; allowed: a detector of people")
        return PoseNetworks(
            detector=frozen(detector, device, self.dtype, compiled=self.compile),
            detector_processor=detector_processor,
            person=people[0],
            network=frozen(network, device, self.dtype, compiled=self.compile),
            processor=VitPoseImageProcessor.from_pretrained(folder, local_files_only=True),
            device=device,
        )

    def annotate(self, batch: Sequence[Request], model: PoseNetworks) -> list[Derived | Skip]:
        import torch

        pictures = [request.inputs["image"].array().copy() for request in batch]  # torch warns of read-only ones
        with torch.inference_mode():
            boxes = self._people(pictures, model)
            return [self._one(picture, found, model) for picture, found in zip(pictures, boxes, strict=True)]

    def _one(self, picture: Pixels, boxes: NDArray[np.float32], model: PoseNetworks) -> Derived | Skip:
        height, width = picture.shape[:2]
        found = self._keypoints(picture, boxes, model) if len(boxes) else []
        everyone = [openpose(points, width, height, self.keypoint_threshold) for points in found]
        people = [{"keypoints": points} for points in everyone if any(points)]
        if not people:
            return Skip("no_person")
        scores = [point[2] for points in everyone for point in points if point]
        document = {"width": width, "height": height, "people": people}
        return Derived({"pose": document}, score=float(np.mean(scores)))

    def _people(self, pictures: Sequence[Pixels], model: PoseNetworks) -> list[NDArray[np.float32]]:
        """Boxes of the people in each picture, N x 4: left, top, width, height in its pixels; best first."""
        inputs = model.detector_processor(list(pictures), **HEIGHT_WIDTH_RGB)
        output = model.detector(inputs["pixel_values"].to(model.device, torch_dtype(self.dtype)))
        output.logits, output.pred_boxes = output.logits.float(), output.pred_boxes.float()
        every = model.detector_processor.post_process_object_detection(
            output, threshold=self.person_threshold, target_sizes=[picture.shape[:2] for picture in pictures]
        )
        corners = [found["boxes"][found["labels"] == model.person].cpu().numpy() for found in every]
        return [np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1) for boxes in corners]

    def _keypoints(self, picture: Pixels, boxes: NDArray[np.float32], model: PoseNetworks) -> list[NDArray[np.float64]]:
        """COCO keypoints of each box, 17 x 3: x, y in pixels of the picture, and score."""
        if len(boxes) > _AT_ONCE:
            parts = [boxes[start : start + _AT_ONCE] for start in range(0, len(boxes), _AT_ONCE)]
            return [found for part in parts for found in self._keypoints(picture, part, model)]
        import torch

        inputs = model.processor(picture, boxes=[boxes], **HEIGHT_WIDTH_RGB)
        experts = model.network.config.backbone_config.num_experts > 1
        options = {"dataset_index": torch.zeros(len(boxes), dtype=torch.int64, device=model.device)} if experts else {}
        output = model.network(inputs["pixel_values"].to(model.device, torch_dtype(self.dtype)), **options)
        output.heatmaps = output.heatmaps.float()
        [people] = model.processor.post_process_pose_estimation(output, boxes=[boxes])
        return [np.column_stack([each["keypoints"].numpy(), each["scores"].numpy()]) for each in people]


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
    seen = [0 <= x < width and 0 <= y < height and score >= threshold for x, y, score in points]
    return [
        [round(float(x), 2), round(float(y), 2), round(min(float(score), 1.0), 4)] if there else None
        for (x, y, score), there in zip(points, seen, strict=True)
    ]


def _checkpoint(model: str, default: str, *, gigabytes: float) -> Checkpoint:
    """Licence and size are known for the default repository alone."""
    known = model.partition("@")[0] == default
    return Checkpoint(model, licence="apache-2.0", gigabytes=gigabytes) if known else Checkpoint(model)

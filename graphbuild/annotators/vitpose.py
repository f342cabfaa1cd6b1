"""Keypoints of people by ViTPose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from graphbuild.annotators.base import Condition, Derived, Request, Resources, Skip, parameter
from graphbuild.config.strict_yaml import Share
from graphbuild.images.codecs import Pixels
from graphbuild.models.checkpoint import Checkpoint
from graphbuild.models.device import Dtype, frozen, hide_loading_bars, torch_dtype
from graphbuild.models.people import (
    BODY,
    DETECTOR,
    WHOLE_BODY,
    PeopleDetector,
    detector_checkpoint,
    load_detector,
    person_of,
    scores_of,
)
from graphbuild.models.resizing import HEIGHT_WIDTH_RGB

MODEL = "usyd-community/vitpose-base-simple"
_EXPERTS = {BODY: 0, WHOLE_BODY: 5}
"""Keypoints -> the number of ViTPose++'s expert for them."""
_AT_ONCE = 32
"""People looked at in one pass: a detector may find 300."""


@dataclass(frozen=True, slots=True)
class PoseNetworks:
    """A detector of people, and ViTPose on its device with its image processor."""

    people: PeopleDetector
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
        model: a checkpoint for the 17 keypoints of COCO, or the 133 of COCO-WholeBody, whose feet, face and hands
            are in the document as `dwpose` has them: a hub repository (`org/name` or `org/name@commit`) or a local
            folder. Of ViTPose++ the expert for them is used.
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
            "model": _checkpoint(self.model),
            "detector": detector_checkpoint(self.detector),
        }

    def load(self, device: str) -> PoseNetworks:
        """
        Raises:
            ValueError: the network finds other keypoints, or the detector knows no people.
        """
        from transformers import VitPoseForPoseEstimation, VitPoseImageProcessor

        hide_loading_bars()
        checkpoints = self.checkpoints()
        folder = checkpoints["model"].folder()
        network = VitPoseForPoseEstimation.from_pretrained(folder, use_safetensors=True, local_files_only=True)
        if network.config.num_labels not in _EXPERTS:
            raise ValueError(
                f"model: {self.model} finds {network.config.num_labels} keypoints; allowed: COCO's 17, or the 133 of "
                "COCO-WholeBody"
            )
        return PoseNetworks(
            people=load_detector(checkpoints["detector"], device, self.dtype, compiled=self.compile),
            network=frozen(network, device, self.dtype, compiled=self.compile),
            processor=VitPoseImageProcessor.from_pretrained(folder, local_files_only=True),
            device=device,
        )

    def annotate(self, batch: Sequence[Request], model: PoseNetworks) -> list[Derived | Skip]:
        import torch

        pictures = [request.inputs["image"].array().copy() for request in batch]  # torch warns of read-only ones
        boxes = model.people.boxes(pictures, self.person_threshold)
        with torch.inference_mode():
            return [self._one(picture, found, model) for picture, found in zip(pictures, boxes, strict=True)]

    def _one(self, picture: Pixels, boxes: NDArray[np.float32], model: PoseNetworks) -> Derived | Skip:
        height, width = picture.shape[:2]
        found = self._keypoints(picture, boxes, model) if len(boxes) else []
        everyone = [person_of(points, width, height, self.keypoint_threshold) for points in found]
        people = [person for person in everyone if any(person["keypoints"])]
        if not people:
            return Skip("no_person")
        document = {"width": width, "height": height, "people": people}
        return Derived({"pose": document}, score=float(np.mean(scores_of(people))))

    def _keypoints(self, picture: Pixels, boxes: NDArray[np.float32], model: PoseNetworks) -> list[NDArray[np.float64]]:
        """COCO keypoints of each box, 17 x 3 or 133 x 3: x, y in pixels of the picture, and score."""
        if len(boxes) > _AT_ONCE:
            parts = [boxes[start : start + _AT_ONCE] for start in range(0, len(boxes), _AT_ONCE)]
            return [found for part in parts for found in self._keypoints(picture, part, model)]
        import torch

        inputs = model.processor(picture, boxes=[boxes], **HEIGHT_WIDTH_RGB)
        experts = model.network.config.backbone_config.num_experts > 1
        expert = torch.full((len(boxes),), _EXPERTS.get(model.network.config.num_labels, 0), device=model.device)
        options = {"dataset_index": expert} if experts else {}
        output = model.network(inputs["pixel_values"].to(model.device, torch_dtype(self.dtype)), **options)
        output.heatmaps = output.heatmaps.float()
        [people] = model.processor.post_process_pose_estimation(output, boxes=[boxes])
        return [np.column_stack([each["keypoints"].numpy(), each["scores"].numpy()]) for each in people]


def _checkpoint(model: str) -> Checkpoint:
    """Licence and size are known for the default repository alone."""
    known = model.partition("@")[0] == MODEL
    return Checkpoint(model, licence="apache-2.0", gigabytes=0.34) if known else Checkpoint(model)

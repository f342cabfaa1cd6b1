"""Keypoints of people with hands and face, by DWPose."""

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
from graphbuild.models.device import Dtype
from graphbuild.models.people import (
    DETECTOR,
    WHOLE_BODY,
    PeopleDetector,
    detector_checkpoint,
    load_detector,
    person_of,
    scores_of,
)

MODEL = "yzd-v/DWPose"
_FILE = "dw-ll_ucoco_384.onnx"
_WIDTH, _HEIGHT = 288, 384
_BINS_A_PIXEL = 2
_PADDING = 1.25
_MEAN, _DEVIATION = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
"""ImageNet's, for RGB 0..255."""


@dataclass(frozen=True, slots=True)
class DwposeNetworks:
    """The detector, and DWPose as a network of OpenCV."""

    people: PeopleDetector
    network: Any


@dataclass(frozen=True, kw_only=True)
class Dwpose(Condition):
    """Keypoints of body, feet, face and hands of people, drawn as DWPose draws them (Z. Yang et al., "Effective
    Whole-body Pose Estimation with Two-stages Distillation", arXiv 2307.15880; people found by RT-DETR, Y. Zhao et al.,
    arXiv 2304.08069).

    Each person found is cut out with a quarter of margin and brought to 288 x 384 bilinearly; a keypoint is the peak of
    its two distributions over x and y, in half pixels of that, and its score the lower peak. The document has, beside
    the 18 keypoints of the body, `feet` (6), `face` (68), `left_hand` and `right_hand` (21 each) of each person, those
    that were found. Coordinates are rounded to 0.01 pixels. The score is the mean of those of the keypoints (0..1).

    The network is an ONNX file that OpenCV runs, on the CPU even where there is a GPU: about a second a person.

    Args:
        model: a hub repository (`org/name` or `org/name@commit`), a local folder with `dw-ll_ucoco_384.onnx`, or a file
            in its form: RTMPose, too, with 133 keypoints and an input of 288 x 384.
        detector: an object detector of transformers with a class `person`.
        person_threshold: least score of a person (0..1).
        keypoint_threshold: least score of a keypoint (0..1).
        detector_dtype: precision of the detector.

    Skips with `no_person` where nobody is found, or nobody with a keypoint of the body.
    """

    makes: ClassVar[tuple[str, ...]] = ("pose",)
    item_facts: ClassVar[tuple[str, ...]] = ()
    libraries: ClassVar[tuple[str, ...]] = ("torch", "torchvision", "transformers")
    model: str = parameter(MODEL, output=False)
    detector: str = parameter(DETECTOR, output=False)
    person_threshold: Share = 0.5
    keypoint_threshold: Share = 0.3
    detector_dtype: Dtype = "float32"
    resources: Resources = Resources(memory_gb=3, batch_size=8)

    def checkpoints(self) -> Mapping[str, Checkpoint]:
        known = self.model.partition("@")[0] == MODEL
        facts: dict[str, Any] = {"licence": "apache-2.0", "gigabytes": 0.13} if known else {}
        return {"model": Checkpoint(self.model, (_FILE,), **facts), "detector": detector_checkpoint(self.detector)}

    def load(self, device: str) -> DwposeNetworks:
        """
        Raises:
            ValueError: the detector knows no people.
            cv2.error: the file is not an ONNX network.
        """
        import cv2

        checkpoints = self.checkpoints()
        found = checkpoints["model"].folder()
        network = cv2.dnn.readNetFromONNX(str(found if found.is_file() else next(found.rglob(_FILE))))
        return DwposeNetworks(load_detector(checkpoints["detector"], device, self.detector_dtype), network)

    def annotate(self, batch: Sequence[Request], model: DwposeNetworks) -> list[Derived | Skip]:
        pictures = [request.inputs["image"].array() for request in batch]
        boxes = model.people.boxes(pictures, self.person_threshold)
        return [self._one(picture, found, model.network) for picture, found in zip(pictures, boxes, strict=True)]

    def _one(self, picture: Pixels, boxes: NDArray[np.float32], network: Any) -> Derived | Skip:
        height, width = picture.shape[:2]
        everyone = (_keypoints(picture, box, network) for box in boxes)
        found = [person_of(points, width, height, self.keypoint_threshold) for points in everyone]
        people = [person for person in found if any(person["keypoints"])]
        if not people:
            return Skip("no_person")
        document = {"width": width, "height": height, "people": people}
        return Derived({"pose": document}, score=float(np.mean(scores_of(people))))


def _keypoints(picture: Pixels, box: NDArray[np.float32], network: Any) -> NDArray[np.float64]:
    """133 x 3: x, y in pixels of the picture, and score, of the person in a box (left, top, width, height).

    Raises:
        ValueError: the network finds other keypoints.
    """
    import cv2

    left, top, width, height = (float(side) for side in box)
    scale = 1 / max(width * _PADDING / _WIDTH, height * _PADDING / _HEIGHT)
    shift = np.array([_WIDTH / 2, _HEIGHT / 2]) - scale * np.array([left + width / 2, top + height / 2])
    cut = cv2.warpAffine(
        picture, np.array([[scale, 0, shift[0]], [0, scale, shift[1]]]), (_WIDTH, _HEIGHT), flags=cv2.INTER_LINEAR
    )
    pixels = (cut - np.array(_MEAN, np.float32)) / np.array(_DEVIATION, np.float32)
    network.setInput(np.ascontiguousarray(pixels.transpose(2, 0, 1)[None]))
    across, down = (values[0] for values in network.forward(network.getUnconnectedOutLayersNames()))
    if len(across) != WHOLE_BODY or across.shape[1] != _WIDTH * _BINS_A_PIXEL:
        raise ValueError(f"model: it gives {across.shape} values; allowed: those of 133 keypoints at 288 x 384")
    peaks = np.stack([across.argmax(1), down.argmax(1)], 1) / _BINS_A_PIXEL
    return np.column_stack([(peaks - shift) / scale, np.minimum(across.max(1), down.max(1))])

"""What classifiers of pictures say: beauty, decency, watermarks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from graphbuild.annotators.base import Derived, Request, Resources, Score, parameter, scored
from graphbuild.errors import GraphError
from graphbuild.models.checkpoint import Checkpoint
from graphbuild.models.device import frozen

AESTHETIC, NSFW, WATERMARK = (
    Checkpoint("cafeai/cafe_aesthetic", licence="agpl-3.0", gigabytes=0.34),
    Checkpoint("Falconsai/nsfw_image_detection", licence="apache-2.0", gigabytes=0.34),
    Checkpoint("amrul-hzz/watermark_detector", licence="apache-2.0", gigabytes=0.34),
)


@dataclass(frozen=True, kw_only=True)
class PictureClass(Score):
    """The probability of one class of an image classifier of transformers.

    Args:
        model: a hub repository (`org/name` or `org/name@commit`) or a local folder.
        label: the class, by its name in the model's `id2label`.
    """

    libraries: ClassVar[tuple[str, ...]] = ("torch", "transformers")
    published: ClassVar[Checkpoint]
    model: str = parameter("", output=False)
    label: str = ""
    resources: Resources = Resources(memory_gb=1, batch_size=8)

    def checkpoints(self) -> Mapping[str, Checkpoint]:
        return {"model": self.published.at(self.model)}

    def load(self, device: str) -> Any:
        """Network and processor.

        Raises:
            GraphError: the model has no such class.
        """
        from transformers import AutoImageProcessor, AutoModelForImageClassification

        folder, processors = self.checkpoints()["model"].folder(), AutoImageProcessor
        loaded: Any = AutoModelForImageClassification.from_pretrained(folder, use_safetensors=True)
        network, labels = frozen(loaded, device, "float32"), loaded.config.label2id
        if self.label not in labels:
            raise GraphError(f"label: {self.label!r}; allowed for {self.model}: {', '.join(labels)}")
        made: Any = processors.from_pretrained(folder)  # type: ignore[no-untyped-call]
        return network, made

    def annotate(self, batch: Sequence[Request], model: Any) -> list[Derived]:
        from PIL import Image

        network, processor = model
        pictures = [Image.fromarray(request.inputs["judged"].array()) for request in batch]
        said = processor(images=pictures, return_tensors="pt").to(network.device)
        chances = network(**said).logits.softmax(-1)[:, network.config.label2id[self.label]]
        return [scored(chance) for chance in chances.double().tolist()]


@dataclass(frozen=True, kw_only=True)
class Aesthetic(PictureClass):
    """The probability that people find a picture beautiful, by a classifier (cafe_aesthetic). Arguments as of
    `PictureClass`."""

    published: ClassVar[Checkpoint] = AESTHETIC
    model: str = parameter(AESTHETIC.model, output=False)
    label: str = "aesthetic"


@dataclass(frozen=True, kw_only=True)
class Safe(PictureClass):
    """The probability that a picture is fit for everybody, by a classifier (nsfw_image_detection). Arguments as of
    `PictureClass`."""

    published: ClassVar[Checkpoint] = NSFW
    model: str = parameter(NSFW.model, output=False)
    label: str = "normal"


@dataclass(frozen=True, kw_only=True)
class Unmarked(PictureClass):
    """The probability that a picture has no watermark, by a classifier (watermark_detector). Arguments as of
    `PictureClass`."""

    published: ClassVar[Checkpoint] = WATERMARK
    model: str = parameter(WATERMARK.model, output=False)
    label: str = "no_watermark"

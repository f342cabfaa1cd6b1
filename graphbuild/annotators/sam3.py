"""Boxes and masks of named things."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from graphbuild.annotators.base import Condition, Derived, Request, Resources, Skip, parameter
from graphbuild.config.strict_yaml import Share
from graphbuild.images.codecs import Pixels
from graphbuild.images.rendering import drawn_colours, layered
from graphbuild.models.checkpoint import Checkpoint
from graphbuild.models.device import Dtype, frozen, hide_loading_bars, torch_dtype

MODEL = "facebook/sam3"

Found = tuple[float, str, list[int], NDArray[np.bool_]]
"""Score, name, box and mask of one thing."""


@dataclass(frozen=True, slots=True)
class Sam3Network:
    """SAM 3 on its device, with its image processor and tokenizer."""

    network: Any
    processor: Any
    tokenizer: Any
    device: str


@dataclass(frozen=True, kw_only=True)
class Sam3(Condition):
    """Every instance of the things in `names`, found and drawn by one network (N. Carion et al., "SAM 3: Segment
    Anything with Concepts", arXiv 2511.16719).

    `boxes` and `mask` show the same objects in the same colours, which the request's seed draws; where masks overlap
    the smaller one lies above. Boxes have whole pixels and are cut at the picture's edge. Attrs: `labels` and `palette`
    of the mask. The score is the best object's (0..1).

    Args:
        model: a hub repository (`org/name` or `org/name@commit`) or a local folder.
        names: what to look for, each a short noun phrase such as `"yellow taxi"`. The picture is looked at once, and
            asked for each name.
        threshold: least score of an object (0..1).
        mask_threshold: least probability of a pixel of a mask (0..1).
        max_objects: the best ones are kept.
        dtype: precision of weights and activations.

    Skips with `no_objects`.
    """

    makes: ClassVar[tuple[str, ...]] = ("boxes", "mask")
    item_facts: ClassVar[tuple[str, ...]] = ()
    libraries: ClassVar[tuple[str, ...]] = ("torch", "torchvision", "transformers")
    model: str = parameter(MODEL, output=False)
    names: tuple[str, ...] = ()
    threshold: Share = 0.5
    mask_threshold: Share = 0.5
    max_objects: Annotated[int, Field(ge=1, le=255)] = 20
    dtype: Dtype = "float32"
    resources: Resources = Resources(memory_gb=8, batch_size=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(name.strip() for name in self.names):
            raise ValueError(f"names: {list(self.names)}; allowed: short noun phrases, such as [dog, yellow taxi]")

    def missing(self) -> list[str]:
        asked = [] if self.names else ["names: none; say what to look for, such as [dog, yellow taxi]"]
        return [*super().missing(), *asked]

    def checkpoints(self) -> Mapping[str, Checkpoint]:
        return {"model": Checkpoint(MODEL, licence="other", gigabytes=3.4).at(self.model)}

    def load(self, device: str) -> Sam3Network:
        from transformers import AutoTokenizer, Sam3ImageProcessor, Sam3Model

        hide_loading_bars()
        local: Any = {"local_files_only": True}
        folder = self.checkpoints()["model"].folder()
        network = Sam3Model.from_pretrained(folder, use_safetensors=True, **local)
        processor = Sam3ImageProcessor.from_pretrained(folder, **local)
        return Sam3Network(
            frozen(network, device, self.dtype), processor, AutoTokenizer.from_pretrained(folder, **local), device
        )

    def annotate(self, batch: Sequence[Request], model: Sam3Network) -> list[Derived | Skip]:
        return [self._one(request, model) for request in batch]

    def _one(self, request: Request, model: Sam3Network) -> Derived | Skip:
        picture = request.inputs["image"].array()
        height, width = picture.shape[:2]
        found = sorted(self._found(picture, model), key=lambda each: -each[0])[: self.max_objects]
        if not found:
            return Skip("no_objects")
        colours = drawn_colours(len(found), request.seed)
        objects = [
            {"label": name, "box": box, "colour": colour, "score": round(score, 4)}
            for (score, name, box, _), colour in zip(found, colours, strict=True)
        ]
        document = {"width": width, "height": height, "boxes": objects}
        attrs = {"labels": ["", *(name for _, name, _, _ in found)], "palette": [[0, 0, 0], *colours]}
        labels = layered([mask for _, _, _, mask in found])
        return Derived({"boxes": document, "mask": labels}, score=found[0][0], attrs=attrs)

    def _found(self, picture: Pixels, model: Sam3Network) -> list[Found]:
        """Every instance of every name that is sure enough and has an area."""
        import torch

        height, width = picture.shape[:2]
        longest = model.network.config.text_config.max_position_embeddings
        pixels = model.processor(np.array(picture), return_tensors="pt", input_data_format="channels_last")[
            "pixel_values"
        ]
        found: list[Found] = []
        with torch.inference_mode():
            seen = model.network.get_vision_features(pixels.to(model.device, torch_dtype(self.dtype)))
            for name in self.names:
                words = model.tokenizer(
                    name.strip().lower(), padding="max_length", max_length=longest, truncation=True, return_tensors="pt"
                )
                output = model.network(
                    vision_embeds=seen,
                    input_ids=words["input_ids"].to(model.device),
                    attention_mask=words["attention_mask"].to(model.device),
                )
                (made,) = model.processor.post_process_instance_segmentation(
                    output, self.threshold, self.mask_threshold, [(height, width)]
                )
                found += _objects(name.strip(), made, (width, height))
        return found


def _objects(name: str, made: Mapping[str, Any], size: tuple[int, int]) -> list[Found]:
    most = np.array(size * 2)
    corners = np.clip(np.rint(made["boxes"].float().cpu().numpy()), 0, most).astype(int).tolist()
    masks, scores = made["masks"].bool().cpu().numpy(), made["scores"].float().cpu().tolist()
    return [
        (score, name, box, mask)
        for score, box, mask in zip(scores, corners, masks, strict=True)
        if box[0] < box[2] and box[1] < box[3] and mask.any()
    ]

"""Depth by Depth Anything."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from graphbuild.annotators.base import Condition, Derived, Request, Resources, Side, parameter
from graphbuild.images.codecs import Pixels
from graphbuild.models.checkpoint import Checkpoint
from graphbuild.models.device import Dtype, frozen, hide_loading_bars, torch_dtype
from graphbuild.models.resizing import HEIGHT_WIDTH_RGB, in_stacks, map_at, picture_at, working_size

MODEL = "depth-anything/Depth-Anything-V2-Large-hf"

_MOST_ASPECT = 4


@dataclass(frozen=True, slots=True)
class DepthNetwork:
    """transformers' `DepthAnythingForDepthEstimation` and its image processor."""

    network: Any
    processor: Any
    patch: int
    device: str


@dataclass(frozen=True, kw_only=True)
class DepthAnything(Condition):
    """Relative depth, near is bright (L. Yang et al., "Depth Anything V2", arXiv 2406.09414).

    The network gives inverse depth up to scale and shift, large where near. Its smallest value in a picture becomes 0,
    its largest 255; they are the attrs `minimum` and `maximum`, so that `minimum + depth / 255 * (maximum - minimum)`
    is what it gave. A picture of constant depth is black.

    The picture is brought to a short side of `resolution` and a long one of at most four times that, both multiples of
    the network's patch (14); the map comes back bilinearly (by area where it shrinks).

    Args:
        model: a hub repository (`org/name` or `org/name@commit`) or a local folder. Checkpoints fine-tuned to metric
            depth are refused: theirs is large where far. The Small one is free for commercial use, Base and Large are
            not.
        resolution: short side in pixels at which the network works; 518 is what it was trained at.
        dtype: precision of weights and activations.
        compile: compile the network, again for each new size of picture.
    """

    makes: ClassVar[tuple[str, ...]] = ("depth",)
    item_facts: ClassVar[tuple[str, ...]] = ()
    libraries: ClassVar[tuple[str, ...]] = ("torch", "torchvision", "transformers")
    model: str = parameter(MODEL, output=False)
    resolution: Side = 518
    dtype: Dtype = "float32"
    compile: bool = parameter(False, output=False)
    resources: Resources = Resources(memory_gb=10, batch_size=8)

    def checkpoints(self) -> Mapping[str, Checkpoint]:
        if self.model.partition("@")[0] == MODEL:
            return {"model": Checkpoint(self.model, licence="cc-by-nc-4.0", gigabytes=1.3)}
        return {"model": Checkpoint(self.model)}

    def missing(self) -> list[str]:
        return super().missing() or self._refused()

    def load(self, device: str) -> DepthNetwork:
        """
        Raises:
            ValueError: the checkpoint gives metric depth, or is none of Depth Anything.
        """
        from transformers import DepthAnythingForDepthEstimation, DPTImageProcessor

        if refused := self._refused():
            raise ValueError(refused[0])
        hide_loading_bars()
        folder = self.checkpoints()["model"].folder()
        processor = DPTImageProcessor.from_pretrained(folder, local_files_only=True)
        network = DepthAnythingForDepthEstimation.from_pretrained(folder, use_safetensors=True, local_files_only=True)
        patch: Any = network.config.patch_size
        return DepthNetwork(frozen(network, device, self.dtype, compiled=self.compile), processor, patch, device)

    def annotate(self, batch: Sequence[Request], model: DepthNetwork) -> list[Derived]:
        pictures = [request.inputs["image"].array() for request in batch]
        small = self._inverse_depths(pictures, model)
        maps = [map_at(one, picture.shape[:2]) for one, picture in zip(small, pictures, strict=True)]
        facts = [{"minimum": float(one.min()), "maximum": float(one.max())} for one in maps]
        return [Derived({"depth": near_is_bright(one)}, attrs=attrs) for one, attrs in zip(maps, facts, strict=True)]

    def _inverse_depths(self, pictures: Sequence[Pixels], model: DepthNetwork) -> list[NDArray[np.float32]]:
        import torch

        def run(stack: torch.Tensor, places: list[int]) -> list[NDArray[np.float32]]:
            stack = stack.to(model.device, torch_dtype(self.dtype))
            return list(model.network(pixel_values=stack).predicted_depth.float().cpu().numpy())

        most = {"short": self.resolution, "long": _MOST_ASPECT * self.resolution, "multiple": model.patch}
        small = [picture_at(picture, working_size(picture, **most)) for picture in pictures]
        with torch.inference_mode():
            inputs = [model.processor(one, do_resize=False, **HEIGHT_WIDTH_RGB)["pixel_values"][0] for one in small]
            return in_stacks(inputs, run)

    def _refused(self) -> list[str]:
        """Why this checkpoint cannot be used, if so."""
        file = self.checkpoints()["model"].folder() / "config.json"
        config = json.loads(file.read_text()) if file.is_file() else {}
        if config.get("model_type") != "depth_anything":
            kind = config.get("model_type", "unknown")
            return [f"model: {self.model} is of type {kind}; allowed: checkpoints of type depth_anything"]
        if config.get("depth_estimation_type", "relative") != "relative":
            return [
                f"model: {self.model} gives metric depth, large where far; allowed: relative depth, such as {MODEL}"
            ]
        return []


def near_is_bright(inverse_depth: NDArray[np.float32]) -> Pixels:
    """Inverse depth or disparity (H x W, large where near) as grey, H x W uint8: the smallest value 0, the largest 255,
    linear between; all 0 where it is constant but for rounding."""
    low, high = float(inverse_depth.min()), float(inverse_depth.max())
    if high - low <= 1e-5 * max(abs(low), abs(high)):
        return np.zeros(inverse_depth.shape, np.uint8)
    return ((inverse_depth - low) * (255 / (high - low))).round().astype(np.uint8)

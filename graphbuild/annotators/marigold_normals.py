"""Surface normals by Marigold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from graphbuild.annotators.base import Condition, Derived, Request, Resources, Side, Steps, parameter
from graphbuild.images.codecs import Pixels
from graphbuild.models.checkpoint import Checkpoint
from graphbuild.models.device import Dtype
from graphbuild.models.diffusion import LIBRARIES, load_pipeline, pipeline_checkpoint
from graphbuild.models.resizing import in_stacks, map_at, picture_at, working_size

MODEL = "prs-eth/marigold-normals-v1-1"


@dataclass(frozen=True, kw_only=True)
class MarigoldNormals(Condition):
    """Surface normals as colours (B. Ke et al., "Marigold: Affordable Adaptation of Diffusion-Based Image Generators
    for Image Analysis", arXiv 2505.09358); see `normal_colours` for which is which.

    Chosen because diffusers maintains it, its weights are safetensors and its licence (OpenRAIL++) allows commercial
    use. NormalBae's weights are a pickle trained on rooms alone (ScanNet), Sapiens2 is made for people and has a
    licence of its own.

    The picture is brought to a long side of `resolution`, both sides multiples of 8; the normals come back bilinearly
    (by area where they shrink) and are made unit length again.

    Args:
        model: a hub repository (`org/name` or `org/name@commit`) or a local folder with a `MarigoldNormalsPipeline`.
        steps: of denoising; the checkpoint recommends 4.
        resolution: long side in pixels at which the network works; 768 is what it was trained at.
        dtype: precision of weights and activations; float16 halves the memory.
    """

    makes: ClassVar[tuple[str, ...]] = ("normal",)
    item_facts: ClassVar[tuple[str, ...]] = ()
    libraries: ClassVar[tuple[str, ...]] = LIBRARIES
    model: str = parameter(MODEL, output=False)
    steps: Steps = 4
    resolution: Side = 768
    dtype: Dtype = "float32"
    resources: Resources = Resources(memory_gb=23, batch_size=4)

    def checkpoints(self) -> Mapping[str, Checkpoint]:
        networks = {"unet": 3.5, "vae": 0.3, "text_encoder": 1.4}
        return {"model": pipeline_checkpoint(self.model, MODEL, networks, "openrail++")}

    def load(self, device: str) -> Any:
        """diffusers' `MarigoldNormalsPipeline` on its device."""
        from diffusers import MarigoldNormalsPipeline

        folder = self.checkpoints()["model"].folder()
        return load_pipeline(MarigoldNormalsPipeline, folder, self.dtype).to(device)

    def annotate(self, batch: Sequence[Request], model: Any) -> list[Derived]:
        pictures = [request.inputs["image"].array() for request in batch]
        maps = self._normals(pictures, [request.seed for request in batch], model)
        sized = (map_at(one, picture.shape[:2]) for one, picture in zip(maps, pictures, strict=True))
        return [Derived({"normal": normal_colours(one)}) for one in sized]

    def _normals(self, pictures: Sequence[Pixels], seeds: Sequence[int], pipeline: Any) -> list[NDArray[np.float32]]:
        """h x w x 3 at the size of the network, x right, y up, z to the viewer."""
        import torch

        def run(stack: torch.Tensor, places: list[int]) -> list[NDArray[np.float32]]:
            # On the CPU, so that a seed means the same noise on every device.
            generators = [torch.Generator("cpu").manual_seed(seeds[place]) for place in places]
            made = pipeline(
                stack.permute(0, 3, 1, 2).float() / 255,
                num_inference_steps=self.steps,
                processing_resolution=0,
                match_input_resolution=False,
                batch_size=len(places),
                generator=generators,
            )
            return list(made.prediction)

        most = {"short": self.resolution, "long": self.resolution, "multiple": pipeline.vae_scale_factor}
        small = [picture_at(picture, working_size(picture, **most)) for picture in pictures]
        return in_stacks([torch.from_numpy(one) for one in small], run)


def normal_colours(normals: NDArray[np.floating[Any]]) -> Pixels:
    """Surface normals in the camera's frame as colours, those of Graph200K.

    Red is how much a surface faces the viewer, green how much it faces up, blue how much it faces left, each from -1
    (0) to 1 (255): a floor is green, a wall in front pink, one on the right blue, one on the left yellow. Read from
    right to left the channels are those that NormalBae and DSINE show.

    Args:
        normals: H x W x 3, x to the right, y up, z to the viewer; of any length but 0.

    Returns:
        H x W x 3 RGB uint8.
    """
    length = np.linalg.norm(normals, axis=2, keepdims=True)
    x, y, z = np.moveaxis(normals / np.maximum(length, 1e-6), 2, 0)
    return ((np.stack([z, y, -x], 2) + 1) * 127.5).round().astype(np.uint8)

"""Another main object in the same picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from graphbuild.annotators.base import (
    Annotator,
    Derived,
    Each,
    Guidance,
    Request,
    Resources,
    Side,
    Skip,
    Steps,
    each,
    parameter,
)
from graphbuild.images.codecs import Pixels
from graphbuild.models.checkpoint import Checkpoint
from graphbuild.models.device import Dtype
from graphbuild.models.diffusion import (
    FLUX_LICENCE,
    LIBRARIES,
    drawing_size,
    drawn_at,
    image_at,
    load_pipeline,
    noise_of,
    pipeline_checkpoint,
)
from graphbuild.models.resizing import Size

MODEL = "black-forest-labs/FLUX.1-Fill-dev"

Shape = Literal["mask", "hull", "box"]

_FOOT = 0.25
"""Share of an object's height in which it touches the ground."""
_NETWORKS = {"transformer": 23.8, "text_encoder": 0.2, "text_encoder_2": 9.5, "vae": 0.2}


@dataclass(frozen=True, kw_only=True)
class FillEdit(Annotator):
    """The picture with its main object replaced by what each edit text says, filled in by FLUX.1 Fill (Black Forest
    Labs, 2024; the base of VisualCloze, Z. Li et al., arXiv 2504.07960).

    The foreground mask, in its own shape or a wider one and grown by `grow`, is filled at about `resolution` x
    `resolution` pixels in the picture's aspect; the result is resized bicubically (by area where it shrinks) and
    blended over the picture, with a ramp as wide as the mask was grown. Every pixel outside of that is the picture's
    own, to the bit. Attrs: `share`, what is filled as a share of the picture (0..1).

    Args:
        model: a hub repository (`org/name` or `org/name@commit`) or a local folder with a `FluxFillPipeline`.
        shape: of what is filled: the `mask` itself, whose outline the new object has to fit into; its convex `hull`; or
            its bounding `box`, which leaves the most room.
        shadow: how far around the object's foot is filled as well, so that its shadow or reflection goes with it: as a
            share of the object's width to either side, of half its height up and down; 0: not at all.
        grow: pixels, at the working size, by which that is dilated, so that no rim of the old object stays.
        steps: of denoising.
        guidance: how closely the text is followed, as an input of the network.
        resolution: square root of the area in pixels at which the network works; None: of the picture's own area, but
            at least 512 and at most 1024.
        dtype: precision of weights and activations.

    Skips with `no_foreground` where the mask is empty, and with `all_foreground` where nothing is left outside of it.
    """

    needs: ClassVar[tuple[str | Each, ...]] = ("image", "foreground_mask", each("edit_text"))
    makes: ClassVar[tuple[str, ...]] = ("edit_local",)
    item_facts: ClassVar[tuple[str, ...]] = ()
    libraries: ClassVar[tuple[str, ...]] = LIBRARIES
    model: str = parameter(MODEL, output=False)
    shape: Shape = parameter("mask", added=True)
    shadow: Annotated[float, Field(ge=0, le=2)] = parameter(0.0, added=True)
    grow: Annotated[int, Field(ge=0, le=512)] = 8
    steps: Steps = 50
    guidance: Guidance = 30.0
    resolution: Side | None = None
    dtype: Dtype = "bfloat16"
    resources: Resources = Resources(memory_gb=39)

    def checkpoints(self) -> Mapping[str, Checkpoint]:
        return {"model": pipeline_checkpoint(self.model, MODEL, _NETWORKS, FLUX_LICENCE)}

    def load(self, device: str) -> Any:
        """diffusers' `FluxFillPipeline` on its device."""
        from diffusers import FluxFillPipeline

        return load_pipeline(FluxFillPipeline, self.checkpoints()["model"].folder(), self.dtype).to(device)

    def annotate(self, batch: Sequence[Request], model: Any) -> list[Derived | Skip]:
        return [self._edited(request, model) for request in batch]

    def _edited(self, request: Request, pipeline: Any) -> Derived | Skip:
        picture, mask = request.inputs["image"].array(), request.inputs["foreground_mask"].values() > 0
        if not mask.any():
            return Skip("no_foreground")
        mask = region(mask, self.shape, self.shadow)
        size = drawing_size(picture, self.resolution)
        width = self.grow * max(picture.shape[:2]) / max(size)
        weight = fading(mask, width)
        if weight.all():
            return Skip("all_foreground")
        filled = self._filled(request, weight > 0, size, pipeline)
        return Derived({"edit_local": laid_over(picture, filled, weight)}, attrs={"share": float((weight > 0).mean())})

    def _filled(self, request: Request, mask: NDArray[np.bool_], size: Size, pipeline: Any) -> Pixels:
        picture = request.inputs["image"].array()
        # Wherever a pixel is to be replaced the network has to fill in.
        hole = (np.asarray(image_at(np.uint8(255) * mask, size)) > 0).astype(np.uint8) * 255
        made = pipeline(
            prompt=request.inputs["edit_text"].text,
            image=image_at(picture, size),
            mask_image=image_at(hole, size),
            height=size[0],
            width=size[1],
            num_inference_steps=self.steps,
            guidance_scale=self.guidance,
            generator=noise_of(request.seed),
        )
        return drawn_at(made.images[0], picture.shape[:2])


def region(mask: NDArray[np.bool_], shape: Shape, shadow: float) -> NDArray[np.bool_]:
    """What is filled in place of an object (H x W, not empty); see `FillEdit`."""
    import cv2

    left, top, width, height = cv2.boundingRect(mask.astype(np.uint8))
    filled = mask.astype(np.uint8)
    if shape == "box":
        filled[top : top + height, left : left + width] = 1
    elif shape == "hull":
        cv2.fillConvexPoly(filled, cv2.convexHull(cv2.findNonZero(filled)), 1)
    if shadow:
        foot = mask.copy()
        foot[: top + height - max(1, round(_FOOT * height))] = False
        filled[_around(foot, shadow * width, shadow * height / 2)] = 1
    return filled.astype(bool)


def _around(mask: NDArray[np.bool_], across: float, along: float) -> NDArray[np.bool_]:
    """Where an ellipse with these half axes (pixels, above 0) touches the mask; as fast for a large one."""
    import cv2

    least = min(across, along)
    (height, width), scale = mask.shape, (least / across, least / along)  # at which the ellipse is a disc
    squeezed = [max(1, round(side * factor)) for side, factor in zip((width, height), scale, strict=True)]
    small = cv2.resize(mask.astype(np.float32), squeezed, interpolation=cv2.INTER_AREA)
    distance = cv2.distanceTransform((small == 0).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    near = cv2.resize((distance <= least).astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)
    return mask | near.astype(bool)  # type: ignore[no-any-return]


def fading(mask: NDArray[np.bool_], width: float) -> NDArray[np.float32]:
    """How much of a mask's filling shows: 1 on the mask (H x W), falling to 0 over `width` pixels around it."""
    import cv2

    distance = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.clip(1 - distance / (width + 1), 0, 1, dtype=np.float32)  # type: ignore[no-any-return]


def laid_over(picture: Pixels, filled: Pixels, weight: NDArray[np.float32]) -> Pixels:
    """A filling over a picture (both H x W x 3 uint8); where its weight (H x W, 0..1) is 0 the picture stays as it is,
    to the bit."""
    made, shows = picture.copy(), weight > 0
    part = weight[shows][:, None]
    made[shows] = np.rint(picture[shows] * (1 - part) + filled[shows] * part).astype(np.uint8)
    return made

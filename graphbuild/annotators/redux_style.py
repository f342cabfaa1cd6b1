"""The subject of a picture in the style of another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from graphbuild.annotators.base import (
    Annotator,
    Derived,
    Each,
    Guidance,
    Request,
    Resources,
    Side,
    Steps,
    each,
    parameter,
)
from graphbuild.images.codecs import Pixels
from graphbuild.models.checkpoint import Checkpoint
from graphbuild.models.device import Dtype
from graphbuild.models.diffusion import LIBRARIES
from graphbuild.models.redux_depth import MODEL, REDUX, ReduxDepth, load_redux_depth, redux_depth_checkpoints


@dataclass(frozen=True, kw_only=True)
class ReduxStyle(Annotator):
    """The subject of the picture in the style of each style reference: FLUX.1 Redux on the reference, FLUX.1 Depth on
    the picture's depth (Black Forest Labs, 2024; so made in Graph200K, Z. Li et al., arXiv 2504.07960).

    Only the depth map says what is drawn, so subjects may change. It is drawn at about `resolution` x `resolution`
    pixels in the picture's aspect and brought to the picture's size bicubically (by area where it shrinks).

    Args:
        model: a hub repository (`org/name` or `org/name@commit`) or a local folder with a `FluxControlPipeline` for
            depth maps in which near is bright. Its text encoders are not loaded.
        redux: the same for a `FluxPriorReduxPipeline`.
        tokens: side of the square of tokens, at most 27, that the reference is averaged to; fewer take over less of
            what it shows.
        steps: of denoising.
        guidance: an input of the network; 10 is the model card's.
        resolution: square root of the area in pixels at which the network works; None: of the picture's own area, but
            at least 512 and at most 1024.
        dtype: precision of weights and activations.
    """

    needs: ClassVar[tuple[str | Each, ...]] = ("image", each("style_reference"), "depth")
    makes: ClassVar[tuple[str, ...]] = ("style_semantic",)
    item_facts: ClassVar[tuple[str, ...]] = ()
    libraries: ClassVar[tuple[str, ...]] = LIBRARIES
    model: str = parameter(MODEL, output=False)
    redux: str = parameter(REDUX, output=False)
    tokens: Annotated[int, Field(ge=1, le=27)] = 27
    steps: Steps = 30
    guidance: Guidance = 10.0
    resolution: Side | None = None
    dtype: Dtype = "bfloat16"
    resources: Resources = Resources(memory_gb=29)

    def checkpoints(self) -> Mapping[str, Checkpoint]:
        return redux_depth_checkpoints(self.model, self.redux, text=False)

    def load(self, device: str) -> ReduxDepth:
        return load_redux_depth(self.checkpoints(), device, self.dtype, tokens=self.tokens, text=False)

    def annotate(self, batch: Sequence[Request], model: ReduxDepth) -> list[Derived]:
        return [Derived({"style_semantic": self._styled(request, model)}) for request in batch]

    def _styled(self, request: Request, model: ReduxDepth) -> Pixels:
        picture, style, depth = (request.inputs[kind].array() for kind in ("image", "style_reference", "depth"))
        return model.drawn(
            depth, style, None, seed=request.seed, steps=self.steps, guidance=self.guidance,
            resolution=self.resolution, size=picture.shape[:2],
        )  # fmt: skip

"""The same subject in front of another background."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from graphbuild.annotators.base import Annotator, Derived, Each, Guidance, Request, Resources, Side, Steps, parameter
from graphbuild.images.codecs import Pixels
from graphbuild.models.checkpoint import Checkpoint
from graphbuild.models.device import Dtype
from graphbuild.models.diffusion import LIBRARIES
from graphbuild.models.redux_depth import MODEL, REDUX, ReduxDepth, load_redux_depth, redux_depth_checkpoints


@dataclass(frozen=True, kw_only=True)
class DepthEdit(Annotator):
    """The picture generated again with another background: FLUX.1 Redux on the picture keeps the look of its subject,
    FLUX.1 Depth its geometry, and the background text says what is behind it (Black Forest Labs, 2024; after the edits
    of Graph200K, Z. Li et al., arXiv 2504.07960).

    All pixels are generated, at about `resolution` x `resolution` pixels in the picture's aspect, and resized to the
    picture's size bicubically (by area where it shrinks).

    Args:
        model: a hub repository (`org/name` or `org/name@commit`) or a local folder with a `FluxControlPipeline` for
            depth maps in which near is bright.
        redux: the same for a `FluxPriorReduxPipeline`.
        tokens: side of the square of tokens, at most 27, that the picture is averaged to. With all 27 x 27 the text has
            no effect, with fewer the subject keeps less of its look.
        steps: of denoising.
        guidance: an input of the network; 10 is the model card's.
        resolution: square root of the area in pixels at which the network works; None: of the picture's own area, but
            at least 512 and at most 1024.
        dtype: precision of weights and activations.
    """

    needs: ClassVar[tuple[str | Each, ...]] = ("image", "depth", "background_text")
    makes: ClassVar[tuple[str, ...]] = ("edit_global",)
    item_facts: ClassVar[tuple[str, ...]] = ()
    libraries: ClassVar[tuple[str, ...]] = LIBRARIES
    model: str = parameter(MODEL, output=False)
    redux: str = parameter(REDUX, output=False)
    tokens: Annotated[int, Field(ge=1, le=27)] = 9
    steps: Steps = 30
    guidance: Guidance = 10.0
    resolution: Side | None = None
    dtype: Dtype = "bfloat16"
    resources: Resources = Resources(memory_gb=39)

    def checkpoints(self) -> Mapping[str, Checkpoint]:
        return redux_depth_checkpoints(self.model, self.redux, text=True)

    def load(self, device: str) -> ReduxDepth:
        return load_redux_depth(self.checkpoints(), device, self.dtype, tokens=self.tokens, text=True)

    def annotate(self, batch: Sequence[Request], model: ReduxDepth) -> list[Derived]:
        return [Derived({"edit_global": self._edited(request, model)}) for request in batch]

    def _edited(self, request: Request, model: ReduxDepth) -> Pixels:
        picture, depth = (request.inputs[kind].array() for kind in ("image", "depth"))
        return model.drawn(
            depth, picture, request.inputs["background_text"].text, seed=request.seed, steps=self.steps,
            guidance=self.guidance, resolution=self.resolution, size=picture.shape[:2],
        )  # fmt: skip

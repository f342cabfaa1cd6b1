"""The picture in the style of another, its content and layout kept."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

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
from graphbuild.models.diffusion import (
    LIBRARIES,
    drawing_size,
    drawn_at,
    image_at,
    load_part,
    load_pipeline,
    noise_of,
    pipeline_checkpoint,
)
from graphbuild.models.resizing import Size

MODEL = "stabilityai/stable-diffusion-xl-base-1.0"
IP_ADAPTER = "h94/IP-Adapter"
CONTROLNETS = {
    "depth": "diffusers/controlnet-depth-sdxl-1.0",
    "canny": "diffusers/controlnet-canny-sdxl-1.0",
}

_NETWORKS = {"unet": 10.3, "text_encoder": 0.5, "text_encoder_2": 2.8, "vae": 0.3}
_ADAPTER = "sdxl_models/ip-adapter_sdxl.safetensors"
_ENCODER = "sdxl_models/image_encoder"
_FLAWS = "text, watermark, lowres, low quality, worst quality, deformed, glitch, noisy, blurry"


@dataclass(frozen=True, kw_only=True)
class InstantStyle(Annotator):
    """The picture in the style of each style reference (H. Wang et al., "InstantStyle", arXiv 2404.02733): of SDXL's
    cross-attention layers only the one that carries style (the middle one of the first up block) sees the reference,
    through IP-Adapter (H. Ye et al., arXiv 2308.06721). The caption says what is drawn, a ControlNet (L. Zhang et al.,
    arXiv 2302.05543) where.

    Drawn at about `resolution` x `resolution` pixels in the picture's aspect and brought to the picture's size
    bicubically (by area where it shrinks). Of the reference the middle square is seen, of the caption the first 77
    tokens.

    Args:
        model: a hub repository (`org/name` or `org/name@commit`) or a local folder with a `StableDiffusionXLPipeline`.
        ip_adapter: the same with `sdxl_models/ip-adapter_sdxl.safetensors` and `sdxl_models/image_encoder`.
        controlnet: the same with a `ControlNetModel`; empty for the one of diffusers for `control`.
        control: the kind that keeps the layout; `none` leaves it to the caption.
        control_strength: weight of the ControlNet (0..1).
        style_strength: weight of the reference in the style layer (0..1).
        negative_prompt: what the picture should not be.
        steps: of denoising.
        guidance: scale of classifier-free guidance.
        resolution: square root of the area in pixels at which the network works; None: of the picture's own area, but
            at least 768, below which SDXL draws badly, and at most 1024.
        dtype: precision of weights and activations.
    """

    needs: ClassVar[tuple[str | Each, ...]] = ("image", each("style_reference"), "caption")
    makes: ClassVar[tuple[str, ...]] = ("style_content",)
    item_facts: ClassVar[tuple[str, ...]] = ()
    libraries: ClassVar[tuple[str, ...]] = LIBRARIES
    model: str = parameter(MODEL, output=False)
    ip_adapter: str = parameter(IP_ADAPTER, output=False)
    controlnet: str = parameter("", output=False)
    control: Literal["none", "depth", "canny"] = "depth"
    control_strength: Annotated[float, Field(ge=0, le=2)] = 0.6
    style_strength: Annotated[float, Field(ge=0, le=2)] = 1.0
    negative_prompt: str = _FLAWS
    steps: Steps = 30
    guidance: Guidance = 5.0
    resolution: Side | None = None
    dtype: Dtype = "bfloat16"
    resources: Resources = Resources(memory_gb=18)

    def reads(self) -> tuple[str | Each, ...]:
        return self.needs if self.control == "none" else (*self.needs, self.control)

    def checkpoints(self) -> Mapping[str, Checkpoint]:
        files = (_ADAPTER, f"{_ENCODER}/*.json", f"{_ENCODER}/*.safetensors")
        known = ("apache-2.0", 4.4) if self.ip_adapter.partition("@")[0] == IP_ADAPTER else ()
        found = {
            "model": pipeline_checkpoint(self.model, MODEL, _NETWORKS, "openrail++"),
            "ip_adapter": Checkpoint(self.ip_adapter, files, *known),
        }
        return found if self.control == "none" else {**found, "controlnet": self._controlnet()}

    def _controlnet(self) -> Checkpoint:
        published = CONTROLNETS[self.control]
        model = self.controlnet or published
        known = ("openrail++", 5.0) if model.partition("@")[0] == published else ()
        return Checkpoint(model, ("config.json", "*.safetensors"), *known)

    def load(self, device: str) -> Any:
        """diffusers' `StableDiffusionXLPipeline`, or the one with a ControlNet, on its device."""
        from diffusers import ControlNetModel, StableDiffusionXLControlNetPipeline, StableDiffusionXLPipeline
        from transformers import CLIPVisionModelWithProjection

        folders = {name: checkpoint.folder() for name, checkpoint in self.checkpoints().items()}
        encoder = load_part(CLIPVisionModelWithProjection, folders["ip_adapter"] / _ENCODER, self.dtype)
        parts: dict[str, Any] = {"image_encoder": encoder, "add_watermarker": False}
        kind: Any = StableDiffusionXLPipeline
        if self.control != "none":
            parts["controlnet"] = load_part(ControlNetModel, folders["controlnet"], self.dtype)
            kind = StableDiffusionXLControlNetPipeline
        pipeline = load_pipeline(kind, folders["model"], self.dtype, **parts)
        logging.getLogger("diffusers.models.modeling_utils").addFilter(_warns_of_something)
        subfolder, name = _ADAPTER.split("/")
        pipeline.load_ip_adapter(folders["ip_adapter"], subfolder, name, local_files_only=True)
        pipeline.set_ip_adapter_scale({"up": {"block_0": [0.0, self.style_strength, 0.0]}})
        return pipeline.to(device)

    def annotate(self, batch: Sequence[Request], model: Any) -> list[Derived]:
        return [Derived({"style_content": self._styled(request, model)}) for request in batch]

    def _styled(self, request: Request, pipeline: Any) -> Pixels:
        from PIL import Image

        picture = request.inputs["image"].array()
        size = drawing_size(picture, self.resolution, least=768)
        made = pipeline(
            prompt=request.inputs["caption"].text,
            negative_prompt=self.negative_prompt,
            ip_adapter_image=Image.fromarray(request.inputs["style_reference"].array()),
            height=size[0],
            width=size[1],
            num_inference_steps=self.steps,
            guidance_scale=self.guidance,
            generator=noise_of(request.seed),
            **self._controlled(request, size),
        )
        return drawn_at(made.images[0], picture.shape[:2])

    def _controlled(self, request: Request, size: Size) -> dict[str, Any]:
        if self.control == "none":
            return {}
        layout = image_at(request.inputs[self.control].array(), size)
        return {"image": layout, "controlnet_conditioning_scale": self.control_strength}


def _warns_of_something(record: logging.LogRecord) -> bool:
    """False for diffusers' warning of modules to keep in float32 where there are none."""
    return "kept in float32: []" not in record.getMessage()

"""Enlarging a picture with the model that made it: SDEdit (arXiv 2108.01073), by a pipeline of diffusers."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from graphbuild.tasks.cells import fit_size
from graphbuild_train.objective import generator

if TYPE_CHECKING:
    from PIL import Image


def enlarged(
    pipe: Any, editor: str, picture: Image.Image, words: str, *, side: int, strength: float, seed: int, **options: Any
) -> Image.Image:
    """A picture resized to the area of a square of `side`, noised to a level of `strength` and denoised again.

    Args:
        pipe: whose networks are used.
        editor: name of the pipeline in diffusers that takes `image`, `strength` and perhaps `mask_image`.
        words: what the picture shows.
        options: further arguments of that pipeline.
    """
    import diffusers
    from PIL import Image

    cls = getattr(diffusers, editor)
    taken = inspect.signature(cls.__init__).parameters
    made = cls(**{name: part for name, part in pipe.components.items() if name in taken})
    made.set_progress_bar_config(disable=True)
    width, height = fit_size(picture.size, side)
    larger = picture.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
    given: dict[str, Any] = {"image": larger}
    arguments = inspect.signature(cls.__call__).parameters
    if "mask_image" in arguments:  # an inpainting model: all of it is to be made
        given["mask_image"] = Image.new("L", larger.size, 255)
    if "height" in arguments:
        given |= {"height": height, "width": width}
    draws = generator(seed, 0, "upscale")
    found: Image.Image = made(prompt=words, strength=strength, generator=draws, **given, **options).images[0]
    return found

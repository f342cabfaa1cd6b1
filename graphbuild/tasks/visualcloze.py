"""diffusers' VisualCloze pipeline: which tasks it can make, and the one place where its bugs are worked around."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from graphbuild.tasks.cells import DIVISOR
from graphbuild.tasks.config import CellConfig

if TYPE_CHECKING:
    from PIL import Image

LAST_BROKEN = (0, 42, 1)
"""The newest diffusers known to have the bugs that `generate` works around; docs/tasks.md lists them."""


def generate(pipe: Any, arguments: Mapping[str, Any], *, generator: Any, **options: Any) -> list[Image.Image]:
    """Run a `VisualClozePipeline` or `VisualClozeGenerationPipeline` on one task, and work around its known bugs.

    Args:
        pipe: its layout prompt is patched in place, see `mend`.
        arguments: `GridTask.pipeline_kwargs()`.
        generator: a `torch.Generator`; the pipeline crashes without.
        options: further arguments of the pipeline, such as `num_inference_steps`.

    Returns:
        one picture per hole, in the order of the columns.

    Raises:
        ValueError: no generator.
    """
    if generator is None:
        raise ValueError("generator: None; allowed: a torch.Generator (diffusers' pipeline crashes without)")
    # return_dict=False with upsampling_strength=0 would nest one output in another
    images = mend(pipe)(**arguments, generator=generator, output_type="pil", return_dict=True, **options).images
    return list(images[0])


def mend(pipe: Any) -> Any:
    """The pipeline itself, patched so that its layout prompt is a string and not a tuple."""
    if is_broken():
        processor = getattr(pipe, "generation_pipe", pipe).image_processor
        broken = type(processor).get_layout_prompt
        processor.get_layout_prompt = lambda size: "".join(broken(processor, size))
    return pipe


def is_broken() -> bool:
    """Whether the installed diffusers is known to have the bugs."""
    return tuple(int(part) for part in re.findall(r"\d+", version("diffusers"))[:3]) <= LAST_BROKEN


def check(cells: CellConfig, resolution: int, *, columns: int, holes: int, degraded: bool) -> None:
    """Refuse a task that the pipeline cannot make.

    Args:
        columns, holes: of the query row.
        degraded: whether a column is a degradation that is computed.

    Raises:
        ValueError: the cells have sides it cannot make, are not decoded exactly or all of the query row is a hole.
    """
    squares = cells.cell_fit != "aspect" or holes > 1
    if (squares or holes == columns) and resolution % DIVISOR:
        raise ValueError(f"resolution: {resolution}; allowed for the pipeline: multiples of {DIVISOR}")
    if cells.decode != "exact":
        raise ValueError(f"decode: {cells.decode!r}; allowed for the pipeline: exact")
    if not squares and cells.degrade_at == "cell" and degraded:
        raise ValueError("degrade_at: 'cell'; allowed for the pipeline with cells that are no squares: 512, source")
    if holes == columns > 1:
        raise ValueError("every picture of the query row is a hole; the pipeline needs one that is given")

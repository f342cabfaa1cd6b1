"""What users load elsewhere: LoRA files in several formats, and the model card."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from graphbuild.config.lookup import find

if TYPE_CHECKING:
    from graphbuild_train.export.lora_file import Lora

FORMATS = {
    "diffusers": "graphbuild_train.export.lora_file:save_diffusers",
    "kohya": "graphbuild_train.export.kohya:save_kohya",
}
GROUP = "graphbuild.lora_exporters"
"""Entry points of other packages that write LoRA files."""


def exporter_of(name: str) -> Callable[[Lora, Path], Path]:
    """What writes a LoRA in a format: a function of the LoRA and where to write it, which returns the file.

    Raises:
        ValueError: no such format.
    """
    found: Callable[[Lora, Path], Path] = find("LoRA format", name, FORMATS, GROUP)
    return found

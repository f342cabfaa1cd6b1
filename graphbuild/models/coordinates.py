"""How vision-language models count where things are, by family."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal

Coordinates = Literal["pixels", "thousandths"]
"""`pixels` of the picture that the network gets, or `thousandths` of the picture's width and height."""

FAMILIES: Mapping[str, Coordinates] = MappingProxyType({
    "qwen2_vl": "thousandths",  # P. Wang et al., arXiv 2409.12191
    "qwen2_5_vl": "pixels",  # S. Bai et al., arXiv 2502.13923
    "qwen3_vl": "thousandths",  # Qwen3-VL, the model's cookbook of 2D grounding
    "qwen3_vl_moe": "thousandths",
})  # fmt: skip
"""transformers' `model_type` -> how its models were taught to count. They do so whatever a question asks for."""

_NAME = re.compile(r"qwen[-_ ]?(2\.5|2_5|2|3)[-_ ]?vl(?![a-z0-9])", re.IGNORECASE)


def coordinates_of_name(model: str) -> Coordinates | None:
    """How a model counts whose name says its family, such as `Qwen/Qwen3-VL-8B-Instruct`; None for another name."""
    found = _NAME.search(model)
    return FAMILIES[f"qwen{found[1].replace('.', '_')}_vl"] if found else None


def coordinates_of_folder(folder: Path) -> Coordinates | None:
    """How the model in a folder of transformers' format counts; None for a family that is not listed."""
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return FAMILIES.get(str(config.get("model_type")))

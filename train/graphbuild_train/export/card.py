"""The model card: a `README.md` beside the LoRA that says what it is, what it was made of, and how to load it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE

from graphbuild_train.bases import base_class
from graphbuild_train.bases.base import UNKNOWN_LICENCE

_TEXT = """
# {name}

A LoRA for {link} that learns tasks from examples in a grid of images: the model sees
rows of solved examples and fills the empty cells of the last row. Trained with graphbuild {version}.

## Load it

```python
import torch
from diffusers import {pipeline}

pipe = {pipeline}.from_pretrained("{model}"{options}, dtype=torch.bfloat16)
pipe.load_lora_weights("{where}", weight_name="{file}")
```
{use}
ComfyUI and kohya's tools read another form: `graphbuild-train export FOLDER --format kohya --out lora.safetensors`.
{note}
## Training

| | |
|---|---|
| objective | `{objective}`, noise levels shifted: {shift} |
| LoRA | {layers}, rank {rank}, alpha {alpha}, {bias} bias{init} |
| steps | {steps_done} of {batch} grid tasks, learning rate {learning_rate}{average} |
| tasks | `{paths}`, cells of {resolution} x {resolution} px in area |
| empty cells | {hole_fill} while training |
| guidance | {guidance} while training |
| data | snapshot `{snapshot}` |
| seed | {seed} |

The header of `{file}` holds the whole recipe as JSON under `graphbuild`.

## Licences

The base decides what may be done with this LoRA: {licence}. It was trained on images under these licences:

{data}
"""

_SAMPLER = """
The pipeline has no sampler for this objective: `graphbuild-train sample` draws grids with the one it was trained for.
"""

_BIASES = """
It has biases: `pipe.fuse_lora()` adds them to those of the base, and fails where a layer has none; kohya's tools leave
them out, ComfyUI and diffusers use them.
"""


def card_text(
    recipe: Mapping[str, Any], *, name: str, licences: Mapping[str, int], datasets: Sequence[str] = ()
) -> str:
    """The card of a LoRA.

    Args:
        recipe: from `recipe_of`, or the `recipe` of a file.
        name: of the LoRA: its folder, or its repository on the Hub.
        licences: licence -> number of the graph's items under it; "" is an item without one.
        datasets: repositories on the Hub that the graph was made from.
    """
    model, on_hub = recipe["base_model"], not os.path.isdir(recipe["base_model"])
    base = base_class(recipe["base"])
    licence = base.licence if model == base.checkpoint else UNKNOWN_LICENCE
    options = f", {base.load_options.format_map(recipe)}" if base.load_options else ""
    front = {
        **({"base_model": model, "base_model_relation": "adapter"} if on_hub else {}),
        "library_name": "diffusers",
        **licence,
        "pipeline_tag": "image-to-image",
        "tags": ["lora", "in-context", "graphbuild", recipe["objective"]],
        **({"datasets": list(datasets)} if datasets else {}),
    }
    lora, optimiser = recipe["lora"], recipe["optimiser"]
    counted = [f"- {licence or 'not stated'}: {count} items" for licence, count in sorted(licences.items())]
    text = _TEXT.format_map(
        {
            **recipe,
            **optimiser,
            **lora,
            "name": name,
            "where": name,
            "paths": "`, `".join(_lists(recipe)),
            "model": model,
            "link": f"[{model}](https://huggingface.co/{model})" if on_hub else f"`{model}`",
            "file": LORA_WEIGHT_NAME_SAFE,
            "pipeline": base.pipeline,
            "options": options,
            "use": f"\n```python{base.example}```\n" if base.example else _SAMPLER,
            "note": _BIASES if lora["bias"] else "",
            "alpha": lora["rank"] if lora["alpha"] is None else lora["alpha"],
            "bias": "with" if lora["bias"] else "without",
            "layers": _layers(lora["layers"]),
            "init": f", begun with PiSSA (rank {2 * lora['rank']} in this file)" if _pissa(lora) else "",
            "average": f", moving average {optimiser['ema']}" if optimiser["ema"] else "",
            "licence": licence.get("license_name", licence["license"]),
            "data": "\n".join(counted) or "- none recorded",
        }
    )
    return f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n{text}"


def _layers(layers: str | Sequence[str]) -> str:
    return f"{layers} layers" if isinstance(layers, str) else f"layers `{'`, `'.join(layers)}`"


def _pissa(lora: Mapping[str, Any]) -> bool:
    return lora.get("init") == "pissa"


def _lists(recipe: Mapping[str, Any]) -> list[str]:
    """Names of the task lists; a custom list is a file somewhere."""
    lists = [entry["paths"] or recipe["paths"] for entry in recipe.get("data", ())] or [recipe["paths"]]
    return [Path(listed).stem for listed in dict.fromkeys(lists)]


def write_card(folder: Path, recipe: Mapping[str, Any], **facts: Any) -> Path:
    """Write `README.md` into the folder of a LoRA; `facts` are those of `card_text`."""
    file = folder / "README.md"
    file.write_text(card_text(recipe, **{"name": folder.name, **facts}), encoding="utf-8")
    return file

"""The model card: true, complete, readable by the Hub, and its example runs."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import yaml
from diffusers import FluxTransformer2DModel, VisualClozePipeline
from PIL import Image

from graphbuild.tasks.instruction import PIPELINE_LAYOUT
from graphbuild_train import LoraConfig, TrainConfig
from graphbuild_train.bases import BASES, base_class
from graphbuild_train.export.card import card_text, write_card
from graphbuild_train.export.lora_file import Lora, recipe_of, save_diffusers
from graphbuild_train.lora import adapter_config, add_lora, lora_state
from tests.support.numerics import assert_close
from tests.support.tiny_models import save_flux_fill
from tests.train.test_lora import output, stir

MODELS = {name: base_class(name).checkpoint for name in BASES}
LICENCES = {"cc-by-4.0": 120, "": 3}


def front_matter(text: str) -> dict[str, Any]:
    front: dict[str, Any] = yaml.safe_load(text.split("---\n")[1])
    return front


def blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize("base", MODELS)
def test_a_card_says_what_the_lora_is_made_of(base: Any) -> None:
    """Guards against a published LoRA of which nobody knows the base, its licence, the data or the recipe."""
    config = TrainConfig(base=base, lora=LoraConfig(rank=8, alpha=2), resolution=512, steps=900)
    recipe = recipe_of(config, model=MODELS[base], snapshot="0123456789ab", hole_fill="black", steps=850)
    text = card_text(recipe, name="me/grids", licences=LICENCES, datasets=["some/images"])
    front = front_matter(text)
    assert (front["base_model"], front["base_model_relation"]) == (MODELS[base], "adapter")
    assert front["library_name"] == "diffusers" and front["datasets"] == ["some/images"]
    assert {"lora", "graphbuild", config.objective} <= set(front["tags"])
    said = ["`0123456789ab`", "rank 8, alpha 2", "850 of 64", "512 x 512", "cc-by-4.0: 120", "not stated: 3", "0.0001"]
    assert [word for word in said if word not in text] == []
    assert "{" not in re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    name = re.search(r"from diffusers import (\w+)", text)
    assert name and hasattr(diffusers, name[1])


def test_a_card_names_own_layers_and_pissa() -> None:
    """Guards against a card that says rank 8 of a file with rank 16."""
    config = TrainConfig(lora=LoraConfig(layers=("attn.to_q", "ff.net.*"), rank=8, init="pissa"))
    text = card_text(recipe_of(config, model="a/b", snapshot="0", hole_fill="black", steps=1), name="x", licences={})
    assert "| LoRA | layers `attn.to_q`, `ff.net.*`, rank 8, alpha 8, without bias, begun with PiSSA (rank 16" in text


@pytest.mark.parametrize(
    ("base", "model", "licence"),
    [
        ("flux_fill", MODELS["flux_fill"], ("other", "flux-1-dev-non-commercial-license")),
        ("sdxl", MODELS["sdxl"], ("openrail++", None)),
        ("flux2_klein", MODELS["flux2_klein"], ("apache-2.0", None)),
        ("flex2", MODELS["flex2"], ("apache-2.0", None)),
        ("qwen_edit", MODELS["qwen_edit"], ("apache-2.0", None)),
        ("flux_fill", "someone/flux-fill-variant", ("other", "see-base-model")),
    ],
)
def test_the_licence_is_the_bases(base: str, model: str, licence: tuple[str, str | None]) -> None:
    """Guards against a LoRA of a non-commercial base that is published as free, or another base taken for the usual."""
    recipe = recipe_of(TrainConfig(base=base), model=model, snapshot="0", hole_fill="grey", steps=1)
    front = front_matter(card_text(recipe, name="me/grids", licences={}))
    assert (front["license"], front.get("license_name")) == licence


@pytest.mark.numeric
def test_the_example_runs(tmp_path: Path) -> None:
    """Guards against a card whose code does not load the file beside it, or calls the pipeline in a way it refuses."""
    base = save_flux_fill(tmp_path / "base")
    model = FluxTransformer2DModel.from_pretrained(base / "transformer", dtype=torch.bfloat16)
    config = TrainConfig(model=str(base), resolution=32, lora=LoraConfig(rank=4, alpha=1))
    add_lora(model, config.lora, ["attn.to_q", "ff.net.2"])
    stir(model)
    recipe = recipe_of(config, model=str(base), snapshot="0", hole_fill="black", steps=1)
    adapter = adapter_config(model)
    save_diffusers(Lora(part="transformer", state=lora_state(model), adapter=adapter, recipe=recipe), tmp_path / "out")
    text = write_card(tmp_path / "out", recipe, name=str(tmp_path / "out"), licences=LICENCES).read_text()
    assert "base_model" not in front_matter(text)  # a folder is no repository
    assert "huggingface.co" not in text.split("##")[0]
    load, call = blocks(text)
    names: dict[str, Any] = {}
    exec(load, names)
    loaded, trained = (output(each, torch.float64) for each in (names["pipe"].transformer, model))
    model.disable_adapters()
    plain = output(model, torch.float64)
    assert isinstance(names["pipe"], VisualClozePipeline) and names["pipe"].config.resolution == 32
    # What the LoRA adds; the pipeline keeps it in bfloat16.
    assert_close(loaded - plain, trained - plain, terms=4, dtype=torch.bfloat16, mutant=(trained - plain) / 2)
    tree = ast.parse(call)
    (made,) = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "pipe"]
    inspect.signature(VisualClozePipeline.__call__).bind(None, **{word.arg or "": None for word in made.keywords})

    def encode(prompt: list[str], **_: Any) -> None:
        raise Told(prompt)

    names |= dict.fromkeys(("example_condition", "example_target", "condition"), Image.new("RGB", (32, 32)))
    names["pipe"].generation_pipe._get_clip_prompt_embeds = encode
    with pytest.raises(Told) as told:
        exec(call, names)
    # diffusers 0.42.1 by itself says the layout with the brackets of a tuple around it; no training said that
    assert told.value.args[0] == [f"{PIPELINE_LAYOUT.format(2, 2, 4)} What the last column is made from."]


class Told(Exception):
    """The words that a pipeline was told."""

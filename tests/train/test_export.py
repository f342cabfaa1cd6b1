"""LoRA files: diffusers reads back exactly what was trained, VisualCloze's file is read, and what is no LoRA is not."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel, StableDiffusionXLPipeline, VisualClozePipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from typer.testing import CliRunner

from graphbuild_train import TrainConfig
from graphbuild_train.bases.flux_fill import FluxFill
from graphbuild_train.bases.sdxl import Sdxl
from graphbuild_train.cli import app
from graphbuild_train.config import LoraConfig
from graphbuild_train.export.kohya import save_kohya
from graphbuild_train.export.lora_file import Lora, read_diffusers, recipe_of, save_diffusers
from graphbuild_train.export.visualcloze import read_visualcloze
from graphbuild_train.lora import adapter_config, add_lora, lora_state
from tests.support.bfl import Bfl, Update
from tests.support.numerics import assert_close
from tests.support.tiny_models import components
from tests.train.test_lora import cast, flux, inputs, layers_of, output, sdxl, stir

TERMS = 1000
"""Of a forward pass of the small models: about ten layers with sums of 32 to 128 terms."""
RECIPE = recipe_of(
    TrainConfig(), model="some/model", snapshot="0123456789ab", hole_fill="black", steps=500, revision="abc"
)


def trained(model: nn.Module, config: LoraConfig | peft.LoraConfig, layers: list[str]) -> Lora:
    """The model's update with values, as a file would hold it."""
    if isinstance(config, LoraConfig):
        add_lora(model, config, layers)
    else:
        model.add_adapter(config)
    stir(model)
    part: Any = "unet" if "down_blocks" in dict(model.named_children()) else "transformer"
    return Lora(part=part, state=lora_state(model), adapter=adapter_config(model), recipe=RECIPE)


def exact(model: nn.Module) -> torch.Tensor:
    """What the model makes of `inputs`, in float64."""
    return output(model, torch.float64)


def scaled(model: nn.Module) -> torch.Tensor:
    """The mutant: the same with an update that is 1 % too large."""
    other = deepcopy(model)
    for name, parameter in lora_state(other).items():
        parameter.mul_(1.01 if "lora_B" in name else 1)
    return exact(other)


def flux_pipe(model: nn.Module) -> Any:
    rest = ("scheduler", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    return FluxPipeline(transformer=model, **dict.fromkeys(rest))


def sdxl_pipe(model: nn.Module) -> Any:
    rest = ("scheduler", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    return StableDiffusionXLPipeline(unet=model, **dict.fromkeys(rest), add_watermarker=False)


VARIANTS: dict[str, LoraConfig | peft.LoraConfig] = {
    "plain": LoraConfig(rank=4),
    "alpha": LoraConfig(rank=8, alpha=2),
    "bias": LoraConfig(rank=4, bias=True),
    "capped": LoraConfig(rank=16, alpha=4, bias=True),
    "stabilised": peft.LoraConfig(r=8, lora_alpha=3, use_rslora=True, target_modules=["attn.to_q", "proj_out"]),
    "mixed": peft.LoraConfig(
        r=8, lora_alpha=4, rank_pattern={"attn.to_k": 2}, alpha_pattern={"attn.to_q": 16},
        target_modules=["attn.to_q", "attn.to_k", "proj_mlp"],
    ),
}  # fmt: skip


@pytest.mark.numeric
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_fresh_flux_pipeline_does_what_was_trained(variant: str, tmp_path: Path) -> None:
    """Guards against a scale, a rank or a bias that gets lost on the way: diffusers takes them from the header."""
    model, fresh = flux(), flux()
    before = {name: tensor.clone() for name, tensor in fresh.state_dict().items()}
    lora = trained(model, VARIANTS[variant], layers_of(FluxFill, model, "all"))
    assert not torch.equal(output(model), output(fresh))
    pipe = flux_pipe(fresh)
    pipe.load_lora_weights(save_diffusers(lora, tmp_path))
    assert torch.equal(output(fresh), output(model))
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    assert_close(output(fresh), exact(model), terms=TERMS, mutant=scaled(model))
    assert set(fresh.state_dict()) == set(before)


def test_visualcloze_and_sdxl_pipelines_read_it_too(tmp_path: Path) -> None:
    """Guards against a file that only the plain FLUX pipeline reads, and a wrong name of the module."""
    parts = components(in_channels=384, guidance=True)
    model, fresh = (FluxTransformer2DModel.from_config(parts["transformer"].config).eval() for _ in range(2))
    fresh.load_state_dict(model.state_dict())
    lora = trained(model, LoraConfig(rank=4, alpha=1), layers_of(FluxFill, model, "attn_ff"))
    pipe = VisualClozePipeline(**{**parts, "transformer": fresh}, resolution=32)
    pipe.load_lora_weights(save_diffusers(lora, tmp_path / "fill"))
    assert torch.equal(output(fresh), output(model))

    unet, fresh_unet = sdxl(), sdxl()
    lora = trained(unet, LoraConfig(rank=4, alpha=1), layers_of(Sdxl, unet, "all"))
    sdxl_pipe(fresh_unet).load_lora_weights(save_diffusers(lora, tmp_path / "sdxl"))
    assert torch.equal(output(fresh_unet), output(unet))


def test_the_file_is_the_pipelines_own_with_the_recipe(tmp_path: Path) -> None:
    """Guards against a form of ours that drifts from diffusers', base weights in the file, and a lost recipe."""
    model = flux()
    lora = trained(model, LoraConfig(rank=16, alpha=4, bias=True), layers_of(FluxFill, model, "all"))
    file = save_diffusers(lora, tmp_path / "ours")
    FluxPipeline.save_lora_weights(
        tmp_path / "theirs",
        transformer_lora_layers=dict(lora.state),
        transformer_lora_adapter_metadata=dict(lora.adapter),
    )
    theirs = tmp_path / "theirs" / file.name
    ours, own = load_file(file), load_file(theirs)
    assert ours.keys() == own.keys() and all(torch.equal(ours[name], own[name]) for name in own)
    assert all(name.startswith("transformer.") and ".lora_" in name for name in ours)
    with safe_open(file, "pt") as opened, safe_open(theirs, "pt") as reference:
        header, wanted = opened.metadata(), reference.metadata()
    assert json.loads(header["lora_adapter_metadata"]) == json.loads(wanted["lora_adapter_metadata"])
    said = json.loads(header["graphbuild"])
    facts = ("objective", "shift", "hole_fill", "base_model", "snapshot", "source_revision", "steps_done")
    assert [said[key] for key in facts] == [
        "visualcloze_fill", "dynamic", "black", "some/model", "0123456789ab", "abc", 500,
    ]  # fmt: skip
    assert [path.name for path in (tmp_path / "ours").iterdir()] == [file.name]
    (tmp_path / "plain").touch()
    assert file.stat().st_mode == (tmp_path / "plain").stat().st_mode  # others may read it if they may read any file


def test_a_file_is_read_back(tmp_path: Path) -> None:
    """Guards against an export of an export that says less than the first."""
    model = flux()
    lora = trained(model, LoraConfig(rank=16, alpha=4, bias=True), layers_of(FluxFill, model, "all"))
    save_diffusers(lora, tmp_path)
    again = read_diffusers(tmp_path)
    assert (again.part, again.recipe) == (lora.part, json.loads(json.dumps(dict(RECIPE))))
    assert again.adapter == lora.adapter and again.state.keys() == lora.state.keys()
    assert {again.scale(layer) for layer in again.layers} == {0.25}
    stable = trained(flux(), VARIANTS["stabilised"], [])
    save_diffusers(stable, tmp_path)
    assert {read_diffusers(tmp_path).scale(layer) for layer in stable.layers} == {3 / 8**0.5}
    file = save_kohya(trained(sdxl(), LoraConfig(rank=2), ["attn1.to_q"]), tmp_path / "kohya.safetensors")
    with pytest.raises(ValueError, match=r"kohya\.safetensors.*lora_down"):
        read_diffusers(file)


def published(model: FluxTransformer2DModel, updates: Mapping[str, Update]) -> torch.Tensor:
    """What the published model with updates makes of `inputs`, in float64."""
    doubled = {name: tuple(cast(part, torch.float64) for part in update) for name, update in updates.items()}
    return Bfl(deepcopy(model).double(), doubled)(cast(inputs(model), torch.float64))  # type: ignore[arg-type]


def halves(updates: Mapping[str, Update]) -> dict[str, Update]:
    """The mutant: the halves of the last modulation stay swapped."""
    name = "final_layer.adaLN_modulation.1"
    a, b, bias, scale = updates[name]
    return {**updates, name: (a, b.roll(len(b) // 2, 0), bias, scale)}


def test_half_precision_halves_the_file_and_refuses_what_it_cannot_hold(tmp_path: Path) -> None:
    """Guards against infinities where float16 ends, and a command that ignores what it was asked for."""
    lora = trained(flux(), LoraConfig(rank=4), ["attn.to_q"])
    whole = save_diffusers(lora, tmp_path / "whole")
    out = tmp_path / "half.safetensors"
    made = CliRunner().invoke(
        app, ["export", str(whole), "--format", "kohya", "--dtype", "bfloat16", "--out", str(out)]
    )
    assert made.exit_code == 0, made.output
    halved, full = load_file(out), load_file(save_kohya(lora, tmp_path / "full.safetensors"))
    for name, tensor in full.items():
        assert torch.equal(halved[name], tensor.bfloat16() if ".lora_" in name else tensor)
    large = Lora(part="transformer", state={name: 1e6 + tensor for name, tensor in lora.state.items()}, adapter={})
    with pytest.raises(ValueError, match="NaN or infinite"):
        large.cast(torch.float16)


def flipped(file: Path) -> None:
    file.write_bytes(b"\xff" * 8 + file.read_bytes()[8:])


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-5])


def no_file_of_ours(file: Path) -> None:
    file.write_text("no tensors at all")


def unpaired(file: Path) -> None:
    save_file({"transformer.x.lora_A.weight": torch.ones(2, 3)}, file)


def nested(file: Path) -> None:
    named = {f"transformer.x.lora_{side}.weight": torch.ones(2, 2) for side in "AB"}
    save_file(named, file, {"graphbuild": "[" * 100_000 + "]" * 100_000})


def no_alpha(file: Path) -> None:
    named = {f"transformer.x.lora_{side}.weight": torch.ones(2, 2) for side in "AB"}
    save_file(named, file, {"lora_adapter_metadata": '{"transformer.r": 2}'})


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (flipped, "header"),
        (cut, "incomplete|header|buffer"),
        (no_file_of_ours, "header"),
        (unpaired, r"layer x: lora_A and lora_B are \(2, 3\) and None, not a pair"),
        (nested, "recursion"),
        (no_alpha, "entry 'lora_alpha' is missing"),
    ],
)
def test_a_file_that_is_no_lora_is_refused_by_name(damage: Callable[[Path], None], words: str, tmp_path: Path) -> None:
    """Guards against tracebacks of three libraries for a half download, or a file of another program."""
    state = {f"x.lora_{side}.weight": torch.ones(2, 2) for side in "AB"}
    file = save_diffusers(Lora(part="transformer", state=state, adapter={}), tmp_path)
    damage(file)
    with pytest.raises(ValueError, match=rf"pytorch_lora_weights\.safetensors: .*({words})"):
        read_diffusers(file)


def test_values_that_are_not_finite_are_refused_with_their_layers() -> None:
    """Guards against a LoRA that makes black pictures, found out when it is published."""
    state = {f"{layer}.lora_{side}.weight": torch.ones(2, 2) for layer in "abc" for side in "AB"}
    state["b.lora_B.weight"] = torch.full((2, 2), float("nan"))
    with pytest.raises(ValueError, match=r"NaN or infinite values in 1 of 3 layers \(b\); train again"):
        Lora(part="transformer", state=state, adapter={})


def visualcloze_file(model: FluxTransformer2DModel, path: Path, rank: int) -> dict[str, Update]:
    """An update of all fused linear layers, the rank capped, saved as VisualCloze's trainer does, and its values."""
    drawn, saved = torch.Generator().manual_seed(3), {}
    plain = Bfl(model, {})
    for name in [key.removesuffix(".weight") for key in plain.weights if key.endswith(".weight")]:
        rows, columns = plain.weights[f"{name}.weight"].shape
        for end, shape in (("A.weight", (min(rank, rows, columns), columns)), ("B.bias", (rows,))):
            saved[f"{name}.lora_{end}"] = torch.randn(shape, generator=drawn) * 0.1
        saved[f"{name}.lora_B.weight"] = torch.randn(rows, min(rank, rows, columns), generator=drawn) * 0.1
    torch.save(saved, path)
    ends = ("A.weight", "B.weight", "B.bias")
    return {
        name: (*(saved[f"{name}.lora_{end}"] for end in ends), 1.0) for name in {k.split(".lora")[0] for k in saved}
    }  # type: ignore[misc]


@pytest.mark.numeric
def test_visualcloze_loras_are_imported(tmp_path: Path) -> None:
    """Guards against rows of fused layers that go to the wrong part: the published model with the LoRA beside its
    fused layers, computed plainly, is what diffusers must give with the converted file."""
    model = flux()
    updates = visualcloze_file(model, tmp_path / "lora.pth", rank=16)
    wanted, plain = published(model, updates), published(model, {})
    assert_close(output(model), plain, terms=TERMS, mutant=wanted)
    lora = read_visualcloze(tmp_path / "lora.pth")
    assert lora.adapter["rank_pattern"] == {"^proj_out": 8} and lora.adapter["lora_bias"]
    pipe = flux_pipe(model)
    pipe.load_lora_weights(save_diffusers(lora, tmp_path / "converted"))
    assert_close(output(model), wanted, terms=TERMS, mutant=published(flux(), halves(updates)))


def test_other_files_are_no_visualcloze_lora(tmp_path: Path) -> None:
    """Guards against a checkpoint of something else that is half read, and against pickled code that is run."""
    torch.save({"double_blocks.0.img_attn.qkv.weight": torch.ones(1)}, tmp_path / "base.pth")
    with pytest.raises(ValueError, match=r"base\.pth.*qkv\.weight.*lora_A"):
        read_visualcloze(tmp_path / "base.pth")
    torch.save({"blocks.0.q.lora_A.weight": torch.ones(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"blocks\.0\.q: no linear layer"):
        read_visualcloze(tmp_path / "other.pth")
    torch.save({"double_blocks.0.img_attn.qkv.lora_A.weight": Path("x")}, tmp_path / "code.pth")
    with pytest.raises(ValueError, match=r"code\.pth: .*weights_only"):
        read_visualcloze(tmp_path / "code.pth")
    (tmp_path / "text.pth").write_text("no tensors at all")
    with pytest.raises(ValueError, match=r"text\.pth: "):
        read_visualcloze(tmp_path / "text.pth")
    torch.save({"double_blocks.0.img_attn.qkv.lora_B.weight": torch.ones(6, 1)}, tmp_path / "half.pth")
    with pytest.raises(ValueError, match=r"half\.pth: entry 'double_blocks.*lora_A.weight' is missing"):
        read_visualcloze(tmp_path / "half.pth")

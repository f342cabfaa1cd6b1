"""LoRA files: diffusers reads back exactly what was trained, its kohya importer too, and VisualCloze's file is read."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from diffusers import (
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    FluxPipeline,
    FluxTransformer2DModel,
    StableDiffusionXLPipeline,
    VisualClozePipeline,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from typer.testing import CliRunner

from graphbuild_train import TrainConfig
from graphbuild_train.bases.flux2_klein import Flux2Klein
from graphbuild_train.bases.flux_fill import FluxFill
from graphbuild_train.bases.sdxl import Sdxl
from graphbuild_train.cli import app
from graphbuild_train.config import Layers, LoraConfig
from graphbuild_train.export.bfl_names import bfl_name
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


@pytest.mark.numeric
@pytest.mark.parametrize("layers", ["attn", "attn_ff"])
@pytest.mark.parametrize("config", [LoraConfig(rank=4), LoraConfig(rank=6, alpha=3)], ids=["plain", "alpha"])
def test_diffusers_imports_the_kohya_form(layers: str, config: LoraConfig, tmp_path: Path) -> None:
    """Guards against names, an alpha or a fusion that other programs read differently."""
    file = tmp_path / "kohya.safetensors"
    for make, base, pipe in ((lambda: flux(num_single_layers=0), FluxFill, flux_pipe), (sdxl, Sdxl, sdxl_pipe)):
        model, fresh = make(), make()
        lora = trained(model, config, layers_of(base, model, layers))
        pipe(fresh).load_lora_weights(save_kohya(lora, file))
        assert_close(output(fresh), exact(model), terms=TERMS, mutant=scaled(model))
        alphas = [tensor for name, tensor in load_file(file).items() if name.endswith(".alpha")]
        downs = [tensor for name, tensor in load_file(file).items() if name.endswith(".lora_down.weight")]
        assert [float(alpha) for alpha in alphas] == [len(down) * config.scale_alpha / config.rank for down in downs]


@pytest.mark.numeric
@pytest.mark.parametrize("layers", [["attn.to_q", "attn.to_k", "attn.to_v"], ["attn.to_v", "proj_mlp"], ["proj_mlp"]])
def test_diffusers_imports_fused_single_blocks(layers: list[str], tmp_path: Path) -> None:
    """Guards against parts of a single block's fused layer in the wrong rows. Its importer knows only the true width,
    so this compares what the update adds, layer by layer."""
    with torch.device("meta"):
        model = FluxTransformer2DModel(num_layers=0, num_single_layers=1)
    names = [f"single_transformer_blocks.0.{layer}" for layer in layers]
    drawn, state = torch.Generator().manual_seed(0), {}
    for at, name in enumerate(names):
        width = model.get_submodule(name).out_features
        state[f"{name}.lora_A.weight"] = torch.randn(at + 2, 3072, generator=drawn)
        state[f"{name}.lora_B.weight"] = torch.randn(width, at + 2, generator=drawn)
    adapter = {"r": 2, "lora_alpha": 1, "alpha_pattern": {f"^{names[-1]}": 3}, "target_modules": names}
    lora = Lora(part="transformer", state=state, adapter=adapter)
    read = FluxPipeline.lora_state_dict(save_kohya(lora, tmp_path / "kohya.safetensors"))
    x = torch.randn(3072, generator=drawn)
    for part in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"):
        name = f"single_transformer_blocks.0.{part}"
        down, up = (read[f"transformer.{name}.lora_{side}.weight"] for side in "AB")
        if part not in layers:
            assert not up.any()
            continue
        a, b = (state[f"{name}.lora_{side}.weight"].double() for side in "AB")
        wanted = lora.scale(name) * (b @ (a @ x.double()))
        assert_close(up @ (down @ x), wanted, terms=3072, mutant=wanted.roll(1))


@pytest.mark.numeric
@pytest.mark.parametrize("bias", [False, True])
def test_every_layer_has_the_published_name(bias: bool, tmp_path: Path) -> None:
    """Guards against a layer that ComfyUI passes over or applies elsewhere, the swapped halves of the last modulation
    above all: the published model with the file's updates does what was trained."""
    model = flux()
    lora = trained(model, LoraConfig(rank=4, alpha=2, bias=bias), layers_of(FluxFill, model, "all"))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        saved = load_file(save_kohya(lora, tmp_path / "kohya.safetensors"))
    words = " ".join(str(warning.message) for warning in said)
    assert "diffusers reads this format without 10 layers of 50" in words and "x_embedder" in words
    assert ("ComfyUI reads the biases of 50 layers" in words) == bias
    updates: dict[str, Update] = {}
    for layer in lora.layers:
        name = bfl_name(layer)[0]
        key = f"lora_unet_{name.replace('.', '_')}"
        down, up = saved[f"{key}.lora_down.weight"], saved[f"{key}.lora_up.weight"]
        scale = float(saved[f"{key}.alpha"]) / len(down)
        updates[name] = (down, up, saved[f"{key}.diff_b"] / scale if bias else 0.0, scale)  # ComfyUI adds it unscaled
    assert len(saved) == (4 if bias else 3) * len(updates)
    assert_close(output(model), published(flux(), updates), terms=TERMS, mutant=published(flux(), halves(updates)))


_BLOCK = r"(down_blocks_\d|mid_block|up_blocks_\d)"
_ATTENTION = rf"{_BLOCK}_attentions_\d+"
SDXL_NAMES = re.compile(
    r"lora_unet_("
    r"(time|add)_embedding_linear_[12]"
    rf"|{_BLOCK}_resnets_\d_time_emb_proj"
    rf"|{_ATTENTION}_proj_(in|out)"
    rf"|{_ATTENTION}_transformer_blocks_\d+_(attn[12]_to_([qkv]|out_0)|ff_net_(0_proj|2))"
    r")\.(lora_down\.weight|lora_up\.weight|alpha)"
)
"""Keys of linear layers that ComfyUI knows in a UNet: diffusers' names with underscores."""


@pytest.mark.parametrize("preset", ["attn", "attn_ff", "all"])
def test_every_layer_of_sdxl_has_a_name_that_comfyui_knows(preset: Layers, tmp_path: Path) -> None:
    """Guards against a layer that is trained and then passed over, 0 of which are unmatched."""
    model = sdxl()
    lora = trained(model, LoraConfig(rank=2), layers_of(Sdxl, model, preset))
    saved = load_file(save_kohya(lora, tmp_path / "kohya.safetensors"))
    assert [key for key in saved if not SDXL_NAMES.fullmatch(key)] == []
    assert len(saved) == 3 * len(lora.layers)


@pytest.mark.numeric
def test_flux2_has_a_kohya_form(tmp_path: Path) -> None:
    """Guards against names of FLUX.1 for FLUX.2, of which ComfyUI reads the diffusers form in part only."""
    torch.manual_seed(0)
    model = Flux2Transformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=24, timestep_guidance_channels=16, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False,
    )  # fmt: skip
    named = {bfl_name(layer)[0] for layer in layers_of(Flux2Klein, model, "all")}
    assert named >= {"double_stream_modulation_img.lin", "final_layer.adaLN_modulation.1", "time_in.in_layer"}
    lora = trained(model, LoraConfig(rank=4, alpha=2), layers_of(Flux2Klein, model, "attn_ff"))
    read = Flux2KleinPipeline.lora_state_dict(save_kohya(lora, tmp_path / "kohya.safetensors"))
    assert len(read) == len(lora.state)
    for layer in lora.layers:
        delta = read[f"transformer.{layer}.lora_B.weight"] @ read[f"transformer.{layer}.lora_A.weight"]
        a, b = (lora.state[f"{layer}.lora_{side}.weight"] for side in "AB")
        assert_close(delta, b.double() @ a.double() / 2, terms=4, mutant=b @ a / 2 * 1.01)


def published(model: FluxTransformer2DModel, updates: Mapping[str, Update]) -> torch.Tensor:
    """What the published model with updates makes of `inputs`, in float64."""
    doubled = {name: tuple(cast(part, torch.float64) for part in update) for name, update in updates.items()}
    return Bfl(deepcopy(model).double(), doubled)(cast(inputs(model), torch.float64))  # type: ignore[arg-type]


def halves(updates: Mapping[str, Update]) -> dict[str, Update]:
    """The mutant: the halves of the last modulation stay swapped."""
    name = "final_layer.adaLN_modulation.1"
    a, b, bias, scale = updates[name]
    return {**updates, name: (a, b.roll(len(b) // 2, 0), bias, scale)}


def test_the_kohya_form_refuses_what_it_cannot_say(tmp_path: Path) -> None:
    """Guards against a LoRA that silently works differently elsewhere."""
    names = {"unet": "down_blocks.0.attn1.to_q", "transformer": "transformer_blocks.0.attn.to_q"}
    for part, name in names.items():  # of SDXL and FLUX.2
        shapes = {"lora_A.weight": (1, 4), "lora_B.weight": (4, 1), "lora_B.bias": (4,)}
        biased = {f"{name}.{end}": torch.ones(shape) for end, shape in shapes.items()}
        lora = Lora(part=part, state=biased, adapter={}, recipe={"objective": "flux2_klein"})
        with pytest.raises(ValueError, match=rf"{name}\.lora_B\.bias: this layer of the base has no bias"):
            save_kohya(lora, tmp_path / "kohya.safetensors")
    state = {f"blocks.0.x.lora_{side}.weight": torch.ones(1, 1) for side in "AB"}
    odd = Lora(part="transformer", state=state, adapter={})
    with pytest.raises(ValueError, match=r"blocks\.0\.x: no linear layer of FLUX"):
        save_kohya(odd, tmp_path / "kohya.safetensors")
    assert not list(tmp_path.iterdir())


def test_what_diffusers_does_not_read_of_the_kohya_form_is_named(tmp_path: Path) -> None:
    """Guards against a LoRA of all layers that loses the embedders in diffusers without a word: at FLUX.1's widths,
    what its importer gives back, and what the warning names, are all layers."""
    with torch.device("meta"):
        model = FluxTransformer2DModel(num_layers=1, num_single_layers=1, guidance_embeds=True)
    names = layers_of(FluxFill, model, "all")
    state = {}
    for name in names:
        layer = model.get_submodule(name)
        state[f"{name}.lora_A.weight"] = torch.ones(1, layer.in_features)
        state[f"{name}.lora_B.weight"] = torch.ones(layer.out_features, 1)
    lora = Lora(part="transformer", state=state, adapter={"r": 1, "lora_alpha": 1, "target_modules": names})
    with pytest.warns(UserWarning, match="10 layers of 30") as said:
        read = FluxPipeline.lora_state_dict(save_kohya(lora, tmp_path / "kohya.safetensors"))
    warned = set(str(said[0].message).split(": ")[1].split(";")[0].split(", "))
    kept = {name.removeprefix("transformer.").split(".lora_")[0] for name in read if name.startswith("transformer.")}
    assert kept | warned == set(names) and not kept & warned


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

"""The kohya form of LoRA files: diffusers' importer reads it, and ComfyUI knows every name in it."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest
import torch
from diffusers import Flux2KleinPipeline, Flux2Transformer2DModel, FluxPipeline, FluxTransformer2DModel
from safetensors.torch import load_file

from graphbuild_train.bases.flux2_klein import Flux2Klein
from graphbuild_train.bases.flux_fill import FluxFill
from graphbuild_train.bases.sdxl import Sdxl
from graphbuild_train.config import Layers, LoraConfig
from graphbuild_train.export.bfl_names import bfl_name
from graphbuild_train.export.kohya import save_kohya
from graphbuild_train.export.lora_file import Lora
from tests.support.bfl import Update
from tests.support.numerics import assert_close
from tests.train.test_export import TERMS, exact, flux_pipe, halves, published, scaled, sdxl_pipe, trained
from tests.train.test_lora import flux, layers_of, output, sdxl


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

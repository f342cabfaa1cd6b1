"""LoRA: the layers and sizes that the papers report, a frozen base, float32 updates, state in and out."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import peft
import pytest
import torch
from diffusers import FluxTransformer2DModel, UNet2DConditionModel
from torch import Tensor, nn

from graphbuild_train.bases.base import Base
from graphbuild_train.bases.flux_fill import FluxFill
from graphbuild_train.bases.sdxl import Sdxl
from graphbuild_train.config import LoraConfig
from graphbuild_train.lora import adapter_config, add_lora, load_lora, lora_state, swapped


def flux(**changed: Any) -> FluxTransformer2DModel:
    """FLUX.1 Fill with a few channels."""
    small: dict[str, Any] = {
        "in_channels": 24, "out_channels": 8, "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 16,
        "num_attention_heads": 2, "joint_attention_dim": 16, "pooled_projection_dim": 16, "axes_dims_rope": (4, 6, 6),
        "guidance_embeds": True,
    }  # fmt: skip
    torch.manual_seed(0)
    return FluxTransformer2DModel(**{**small, **changed}).eval()


def sdxl() -> UNet2DConditionModel:
    """The UNet of SDXL with a few channels."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1,
        norm_num_groups=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), attention_head_dim=(1, 2), cross_attention_dim=40,
        transformer_layers_per_block=(1, 2), use_linear_projection=True, addition_embed_type="text_time",
        addition_time_embed_dim=8, projection_class_embeddings_input_dim=20 + 6 * 8,
    ).eval()  # fmt: skip


def real_sdxl() -> UNet2DConditionModel:
    """SDXL's UNet at full size."""
    return UNet2DConditionModel(
        sample_size=128, block_out_channels=(320, 640, 1280), cross_attention_dim=2048, attention_head_dim=(5, 10, 20),
        transformer_layers_per_block=(1, 2, 10), use_linear_projection=True, addition_embed_type="text_time",
        addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip


def inputs(model: nn.Module) -> dict[str, Any]:
    """Arguments of one forward pass, two samples."""
    drawn = torch.Generator().manual_seed(1)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=drawn)

    if isinstance(model, UNet2DConditionModel):
        added = {"text_embeds": noise(2, 20), "time_ids": noise(2, 6)}
        return {
            "sample": noise(2, 4, 8, 8), "timestep": torch.tensor([10, 700]),
            "encoder_hidden_states": noise(2, 5, 40), "added_cond_kwargs": added,
        }  # fmt: skip
    ids = torch.tensor([(1, y, x) for y in range(2) for x in range(3)], dtype=torch.float32)
    config = model.config
    return {
        "hidden_states": noise(2, 6, config.in_channels), "encoder_hidden_states": noise(2, 3, 16),
        "pooled_projections": noise(2, 16), "timestep": torch.tensor([0.2, 0.7]), "img_ids": ids,
        "txt_ids": torch.zeros(3, 3), "guidance": torch.ones(2) if config.guidance_embeds else None,
    }  # fmt: skip


def output(model: nn.Module, dtype: torch.dtype = torch.float32) -> Tensor:
    """What the model, or a copy of it in another dtype, makes of `inputs`."""
    own = model if dtype == torch.float32 else deepcopy(model).to(dtype)
    with torch.no_grad():
        made: Tensor = own(**cast(inputs(model), dtype), return_dict=False)[0]
    return made


def cast(arguments: Any, dtype: torch.dtype) -> Any:
    """The same arguments, their floats in another dtype."""
    if isinstance(arguments, dict):
        return {name: cast(value, dtype) for name, value in arguments.items()}
    return arguments.to(dtype) if isinstance(arguments, Tensor) and arguments.is_floating_point() else arguments


def layers_of(base: type[Base], model: nn.Module, layers: Any) -> list[str]:
    """The preset's layers, without a checkpoint to load."""
    return Base.targets(type("Bare", (), {"bare": model, **vars(base)})(), layers)  # type: ignore[arg-type]


def test_layers_are_chosen_by_patterns_of_names() -> None:
    """Guards against a pattern that fits the end of another name, and one that fits nothing and trains nothing."""
    model = flux()
    every = layers_of(FluxFill, model, "all")
    queries = [name for name in every if name.endswith("attn.to_q")]
    assert layers_of(FluxFill, model, ("attn.to_q",)) == queries and len(queries) == 4
    one = {f"transformer_blocks.1.attn.to_{each}" for each in "qkv"}
    assert layers_of(FluxFill, model, ("transformer_blocks.1.attn.to_[qkv]", "to_q")) == [
        name for name in every if name in {*queries, *one}
    ]
    with pytest.raises(ValueError, match=r"lora.layers: 'o_q' fits none of \d+ linear layers, such as "):
        layers_of(FluxFill, model, ("to_q", "o_q"))
    assert len(layers_of(FluxFill, model, ("*",))) == len(every)


def stir(model: nn.Module) -> None:
    """Give the update values, as if it had been trained."""
    drawn = torch.Generator().manual_seed(2)
    for parameter in lora_state(model).values():
        parameter.copy_(torch.randn(parameter.shape, generator=drawn) * 0.1)


def meta_flux(*, guidance: bool = True) -> FluxTransformer2DModel:
    """FLUX.1 Fill at full size, without memory."""
    with torch.device("meta"):
        return FluxTransformer2DModel(in_channels=384, out_channels=64, guidance_embeds=guidance)


@pytest.mark.parametrize(
    ("layers", "config", "modules", "millions"),
    [
        ("attn", LoraConfig(rank=16), 19 * 8 + 38 * 3, 26),
        ("attn_ff", LoraConfig(rank=16), 19 * 12 + 38 * 3, 45),
        ("all", LoraConfig(rank=16), 504, 87),
        ("all", LoraConfig(rank=256, bias=True), 504, 1390),
    ],
)
def test_presets_are_as_large_as_published(layers: str, config: LoraConfig, modules: int, millions: int) -> None:
    """Guards against a preset that misses layers, or takes more: nothing fails, the LoRA is just another one."""
    model = meta_flux()
    with torch.device("meta"):
        count = add_lora(model, config, layers_of(FluxFill, model, layers))
    assert (count.modules, round(count.parameters / 1e6)) == (modules, millions)
    whole = sum(parameter.numel() for parameter in model.parameters())
    assert count.share == count.parameters / whole and f"{count.share:.3%}" in str(count)


def test_sizes_of_the_paper_presets() -> None:
    """Guards against a rank that is not capped, a bias that is forgotten, or another choice of layers: VisualCloze's
    1.388 billion (counted without the guidance embedder), and ONE-PIC's 0.618% of SDXL."""
    model = meta_flux(guidance=False)
    with torch.device("meta"):
        count = add_lora(model, LoraConfig(rank=256, bias=True), layers_of(FluxFill, model, "all"))
        assert round(count.parameters / 1e6) == 1388
        unet = real_sdxl()
        count = add_lora(unet, LoraConfig(rank=32, alpha=4), layers_of(Sdxl, unet, "attn"))
    assert (round(count.parameters / 1e6, 2), round(100 * count.share, 4)) == (15.97, 0.6183)


@pytest.mark.parametrize("layers", ["attn", "attn_ff", "all"])
def test_presets_exist_in_sdxl(layers: str) -> None:
    """Guards against a preset whose names are of FLUX only."""
    model = sdxl()
    assert add_lora(model, LoraConfig(rank=2), layers_of(Sdxl, model, layers)).modules > 0


def test_only_the_update_is_trained_and_in_float32() -> None:
    """Guards against a base that trains along, an update in bfloat16, and layers that no gradient reaches."""
    model = flux(guidance_embeds=False).bfloat16()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    add_lora(model, LoraConfig(rank=4), layers_of(FluxFill, model, "all"))
    stir(model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert {parameter.dtype for parameter in trained} == {torch.float32}
    assert len(trained) == len(lora_state(model)) == 2 * len(layers_of(FluxFill, flux(guidance_embeds=False), "all"))
    arguments = {k: v if v is None or "ids" in k else v.bfloat16() for k, v in inputs(model).items()}
    model(**arguments, return_dict=False)[0].float().square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in trained)
    torch.optim.AdamW(trained, lr=0.1).step()
    after = {name.replace(".base_layer", ""): tensor for name, tensor in model.state_dict().items()}
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert {name for name in after if "lora_" not in name} == set(before)


def test_it_starts_at_the_base_and_from_its_own_seed() -> None:
    """Guards against a first step from elsewhere, against processes that start apart, and against a library that
    moves the caller's random state."""
    base, states = flux(), []
    wanted = output(base)
    for run, seed in enumerate((5, 5, 6)):
        model = flux()
        at = torch.manual_seed(run).get_state()
        add_lora(model, LoraConfig(rank=4, bias=True), layers_of(FluxFill, model, "all"), seed=seed)
        assert torch.equal(torch.get_rng_state(), at)
        assert torch.equal(output(model), wanted)
        states.append(lora_state(model))
    first, same, other = states
    assert all(torch.equal(tensor, same[name]) for name, tensor in first.items())
    assert not torch.equal(first["proj_out.lora_A.weight"], other["proj_out.lora_A.weight"])


def test_narrow_layers_get_a_smaller_rank_at_the_same_scale() -> None:
    """Guards against a rank above a layer's width, which VisualCloze caps, and against a cap that changes the scale or
    catches another layer with the same end of its name."""
    model = flux()
    add_lora(model, LoraConfig(rank=16, alpha=4), layers_of(FluxFill, model, "all"))
    state = lora_state(model)
    assert state["proj_out.lora_A.weight"].shape == (8, 32) and state["x_embedder.lora_A.weight"].shape == (16, 24)
    assert state["single_transformer_blocks.0.proj_out.lora_A.weight"].shape[0] == 16
    scales = {module.scaling["default"] for module in model.modules() if hasattr(module, "scaling")}
    assert scales == {0.25}
    assert adapter_config(model)["rank_pattern"] == {"^proj_out": 8}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("alpha", [4, 8])
@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")  # which is what is asked for
def test_outputs_and_gradients_are_those_of_peft(dtype: torch.dtype, alpha: int) -> None:
    """Guards against a product that is left out where the scale is not 1, another dtype, and an update that stays where
    it is turned off or another is in use."""
    model = flux().to(dtype)
    add_lora(model, LoraConfig(rank=4, alpha=alpha, bias=True), layers_of(FluxFill, model, "all"))
    stir(model)
    (theirs := deepcopy(model)).requires_grad_(True)
    for layer in theirs.modules():
        vars(layer).pop("forward", None)
    for each in (model, theirs):
        each(**cast(inputs(each), dtype), return_dict=False)[0].float().square().mean().backward()
    found, wanted = (
        [each.get_parameter(name).grad for name, own in model.named_parameters() if own.requires_grad]
        for each in (model, theirs)
    )
    assert found and all(torch.equal(own, other) for own, other in zip(found, wanted, strict=True))
    for change in (
        lambda each: None,
        lambda each: [layer.scale_layer(2.0) for layer in each.modules() if hasattr(layer, "scale_layer")],
        lambda each: each.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q"]), "other"),
        lambda each: each.disable_adapters(),
        lambda each: each.fuse_lora(),
    ):
        pair = deepcopy(model), deepcopy(theirs)
        for each in pair:
            change(each)
        with torch.no_grad():
            ours, peers = (each(**cast(inputs(each), dtype), return_dict=False)[0] for each in pair)
        assert ours.dtype == dtype and torch.equal(ours, peers)
    assert torch.equal(output(model, torch.float64), output(theirs, torch.float64))  # the update in another dtype, too


def test_a_target_that_is_no_layer_is_refused() -> None:
    """Guards against a run that trains half of what was asked for."""
    model = flux()
    with pytest.raises(ValueError, match=r"'attn1.to_q'.*FluxTransformer2DModel.*transformer_blocks\.0\."):
        add_lora(model, LoraConfig(), ["attn.to_q", "attn1.to_q"])
    with pytest.raises(ValueError, match="targets: none"):
        add_lora(model, LoraConfig(), [])
    assert not lora_state(model)


def test_state_goes_out_in_and_is_swapped() -> None:
    """Guards against a resume that loads nothing, and an average that stays in the model or is trained on."""
    model, other = flux(), flux()
    for each in (model, other):
        add_lora(each, LoraConfig(rank=4, bias=True), ["attn.to_q", "proj_mlp"])
    stir(model)
    own = {name: tensor.clone() for name, tensor in lora_state(model).items()}
    assert set(own) >= {f"transformer_blocks.1.attn.to_q.lora_{x}" for x in ("A.weight", "B.weight", "B.bias")}
    load_lora(other, own)
    assert torch.equal(output(other), output(model))
    average = {name: tensor * 0.5 for name, tensor in own.items()}
    wanted = output(model)

    def fail() -> None:
        with swapped(model, average):
            assert not torch.equal(output(model), wanted)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert torch.equal(output(model), wanted)


@pytest.mark.parametrize("change", ["missing", "surplus", "shape"])
def test_the_state_of_another_lora_is_refused(change: str) -> None:
    """Guards against a resume with another preset or rank that goes on from something else."""
    model = flux()
    add_lora(model, LoraConfig(rank=4), ["attn.to_q"])
    state = {name: tensor.clone() for name, tensor in lora_state(model).items()}
    name = "transformer_blocks.0.attn.to_q.lora_A.weight"
    changed = {
        "missing": {key: tensor for key, tensor in state.items() if key != name},
        "surplus": {**state, "transformer_blocks.0.attn.to_x.lora_A.weight": state[name]},
        "shape": {**state, name: state[name][:2]},
    }[change]
    with pytest.raises(ValueError, match=r"transformer_blocks\.0\.attn\.to_.\.lora_A\.weight.*1 such"):
        load_lora(model, changed)

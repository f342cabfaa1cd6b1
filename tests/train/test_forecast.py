"""Forecast of memory and time: against a published table of counts, and against torch's own counter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from graphbuild_train import preflight
from graphbuild_train.bases.flux_fill import FluxFill
from graphbuild_train.bases.sdxl import Sdxl
from graphbuild_train.config import LoraConfig, OptimiserConfig, config_from
from graphbuild_train.forecast import GIB, UTILISATION, forecast, peak_of, transformer_work, unet_work
from graphbuild_train.lora import add_lora
from tests.support import meta_models
from tests.train.test_lora import flux, inputs, layers_of, meta_flux, real_sdxl, sdxl

OBJECTIVE = {"flux_fill": "visualcloze_fill", "flux2_klein": "flux2_klein"}
COUNTED = {
    1024: (44.7, 66.3, 51.8, 75.7),
    1152: (48.9, 72.4, 56.6, 82.6),
    2304: (89.6, 131.6, 102.6, 148.9),
    4096: (163.9, 238.4, 185.2, 266.7),
    6912: (308.0, 442.7, 342.2, 488.2),
    12288: (675.5, 956.0, 734.6, 1034.5),
}
"""Image tokens -> TFLOP of a step of FLUX.1, counted on the meta device: attention layers at rank 16 without and with
checkpointing, all layers at rank 256 without and with."""


@pytest.fixture(scope="module")
def adapted() -> dict[str, nn.Module]:
    """FLUX.1 Fill at full size in bfloat16, with the smallest and the largest preset."""
    models: dict[str, nn.Module] = {}
    for layers, config in (("attn", LoraConfig(rank=16)), ("all", LoraConfig(rank=256, bias=True))):
        models[layers] = meta_flux()
        for parameter in models[layers].parameters():
            parameter.data = parameter.data.bfloat16()
        with torch.device("meta"):
            add_lora(models[layers], config, layers_of(FluxFill, models[layers], layers))
    return models


@pytest.mark.parametrize("tokens", COUNTED)
def test_flops_of_flux_agree_with_a_count(tokens: int, adapted: dict[str, nn.Module]) -> None:
    """Guards against a formula that forgets attention, the text, or the part of layers that only modulate."""
    for layers, pair in (("attn", COUNTED[tokens][:2]), ("all", COUNTED[tokens][2:])):
        for checkpointing, wanted in zip((0, 1), pair, strict=True):
            work = transformer_work(adapted[layers], tokens, 512)
            made = forecast(adapted[layers], work, activations=0, checkpointing=checkpointing)
            assert (made.flops + made.recomputed) / 1e12 == pytest.approx(wanted, rel=0.02)


def on_meta(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: on_meta(entry) for key, entry in value.items()}
    return None if value is None else value.to("meta")


@pytest.mark.parametrize("layers", ["attn", "attn_ff", "all"])
def test_flops_agree_with_torchs_counter(layers: Any) -> None:
    """Guards against a formula that fits one size of one preset only. The counter sees attention on the meta device."""
    model = flux(num_layers=4, num_single_layers=8)
    add_lora(model, LoraConfig(rank=2), layers_of(FluxFill, model, layers))
    arguments = on_meta(inputs(model))
    with FlopCounterMode(display=False) as counted:
        model.to("meta")(**arguments, return_dict=False)[0].sum().backward()
    made = forecast(model, transformer_work(model, 6, 3), activations=0, batch=2)
    assert made.flops == pytest.approx(counted.get_total_flops(), rel=0.05)  # the first layers pass no gradient on


def test_flops_of_sdxl_agree_with_torchs_counter() -> None:
    """Guards against levels of the UNet that count at another resolution than theirs."""
    model = sdxl()
    add_lora(model, LoraConfig(rank=2), layers_of(Sdxl, model, "attn"))
    arguments = on_meta(inputs(model))
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        model.to("meta")(**arguments)
    made = forecast(model, unet_work(model, 64, 5), activations=0, batch=2, checkpointing=1)
    assert made.recomputed == counted.get_total_flops()


WIDTH, TEXT = 3072, 512
KEPT = {
    "flux_fill": {"attn": (13, 12), "attn_ff": (18, 12), "all": (22, 19)},
    "flux2_klein": {"attn": (18, 21)},
}
"""Vectors of the model's width that a double and a single block keep of each token in bfloat16. FLUX.1, attention: the
input of the norm and what the LoRA sees of it, queries and keys before and after their norm, values, the output, four
of the GELU, in double blocks the second norm's input. Feed-forward layers add their two inputs, 1 + 4; all layers what
is scaled and gated, and the input of the last one."""
ENCODERS = {"flux_fill": 4.762e9 + 0.123e9 + 0.084e9, "flux2_klein": 4.022e9 + 0.084e9}
"""Parameters of T5-XXL, CLIP-L and the VAE; of Qwen3-4B and the VAE."""
WEIGHTS: dict[str, Any] = {
    "flux_fill": lambda double, single: WIDTH**2 * (36 * double + 15 * single) + 0.08e9,
    "flux2_klein": lambda double, single: WIDTH**2 * (26 * double + 13 * single) + 0.15e9,
}
"""Parameters: squares of the width in blocks (FLUX.1 modulates in each, FLUX.2 once), and what is around them."""


SEEN = {"flux_fill": {"attn": (4, 3), "attn_ff": (6, 3), "all": (8, 5)}, "flux2_klein": {"attn": (4, 2)}}
"""Adapted layers that a token passes in a double and in a single block; of each a vector of the rank is kept."""
GRIDS = {1024: (4, 256), 2304: (4, 384), 6912: (12, 384)}
"""Image tokens -> cells in a row, and the side of one."""


def table_of(
    base: str, lora: tuple[str, int], blocks: tuple[int, int], *, tokens: int, trained: int
) -> dict[str, float]:  # fmt: skip
    """What a pass takes by the counts above, in bytes; `tokens` with those of the text."""
    layers, rank = lora
    kept = sum(
        number * (WIDTH * each + rank * seen)
        for number, each, seen in zip(blocks, KEPT[base][layers], SEEN[base][layers], strict=True)
    )
    return {
        "base": 2 * WEIGHTS[base](*blocks), "others": 2 * ENCODERS[base], "lora": 16 * trained,
        "activations": 2 * tokens * kept + 2 * trained,
    }  # fmt: skip


def assert_like(made: Any, table: dict[str, float]) -> None:
    for name, size in table.items():
        assert getattr(made, name) == pytest.approx(size, rel=0.1), name
    assert made.memory == pytest.approx(sum(table.values()), rel=0.1)


@pytest.mark.parametrize(
    ("lora", "columns", "blocks"),
    [(("attn", 16), 12, (19, 38)), (("attn_ff", 64), 4, (6, 12)), (("all", 256), 2, (6, 12))],
)
def test_memory_agrees_with_a_table_by_blocks(
    tmp_path: Path, lora: tuple[str, int], columns: int, blocks: tuple[int, int]
) -> None:
    """Guards against a forecast that says a run fits which does not: weights, encoders, 16 bytes a trained parameter,
    and what each block keeps, at 1,152 to 6,912 tokens."""
    layers, rank = lora
    folder = meta_models.flux_fill(tmp_path, num_layers=blocks[0], num_single_layers=blocks[1])
    config = config_from({"lora": {"layers": layers, "rank": rank}})
    planned, count = preflight.planned(config, str(folder))
    made = preflight.pass_of(config, planned, 1, columns)
    assert made is not None
    tokens = columns * (384 // 16) ** 2 + TEXT
    assert_like(made, table_of("flux_fill", lora, blocks, tokens=tokens, trained=count.parameters))


def cast(forward: Callable[[torch.Tensor], torch.Tensor], dtype: torch.dtype, states: torch.Tensor) -> torch.Tensor:
    return forward(states.to(dtype))


def norms_within_autocast(model: nn.Module) -> None:
    """Layer norms in float32, and every linear layer with a cast of its own: what autocast did on the GPU."""
    for module in model.modules():
        if isinstance(module, nn.LayerNorm | nn.Linear):
            dtype = torch.float32 if isinstance(module, nn.LayerNorm) else module.weight.dtype
            module.forward = partial(cast, module.forward, dtype)


@pytest.mark.parametrize(
    ("lora", "checkpointing", "compile", "took"),
    [(("attn", 16), 0, False, 61.5), (("attn", 16), 1, False, 26.2), (("attn", 16), 0, True, 53.3),
     (("attn_ff", 64), 0, True, 59.5)],
)  # fmt: skip
def test_memory_agrees_with_what_a_gpu_took(
    tmp_path: Path, lora: tuple[str, int], checkpointing: int, compile: bool, took: float
) -> None:
    """Guards against a forecast that agrees with a count, and not with a GPU: the table of docs/training.md, 6,912
    tokens on an H200 with torch 2.11. Layer norms were within autocast then; compiled code fuses their copies away."""
    config = config_from({"lora": {"layers": lora[0], "rank": lora[1]}, "checkpointing": checkpointing})
    planned, _ = preflight.planned(config, str(meta_models.flux_fill(tmp_path)))
    if not compile:
        norms_within_autocast(planned.bare)
    made = preflight.pass_of(config, planned, 1, 12)
    assert made is not None
    assert made.base + made.lora + made.activations == pytest.approx(took * GIB, rel=0.1)


@pytest.mark.parametrize("rank", [16, 64, 256])
@pytest.mark.parametrize(("base", "blocks"), [("flux_fill", (6, 12)), ("flux2_klein", (3, 12))])
def test_memory_agrees_with_the_table_for_every_rank_and_size(
    tmp_path: Path, base: str, blocks: tuple[int, int], rank: int
) -> None:
    """Guards against a forecast that fits one rank or one grid. A third of the blocks: the table counts block by
    block."""
    made = getattr(meta_models, "klein" if base == "flux2_klein" else base)
    folder = made(tmp_path, num_layers=blocks[0], num_single_layers=blocks[1])
    config = config_from({"base": base, "objective": OBJECTIVE[base], "lora": {"layers": "attn", "rank": rank}})
    planned, count = preflight.planned(config, str(folder))
    for tokens, (columns, side) in GRIDS.items():
        found = preflight.pass_of(replace(config, resolution=side), planned, 1, columns)
        table = table_of(base, ("attn", rank), blocks, tokens=tokens + TEXT, trained=count.parameters)
        assert_like(found, table)


def sdxl_kept(unet: nn.Module, rank: int, height: int, width: int) -> float:
    """Bytes that a pass over height x width latent pixels keeps.

    Of each transformer block 22 vectors, 12 of them of the gated feed-forward layer and 10 of two attentions, a vector
    of the rank of three layers, and keys and values of the 77 tokens of text; the input of the norm before some blocks;
    in a residual block the inputs of two norms and of two activations.
    """
    kept = 0.0
    for name, module in unet.named_modules():
        if name.endswith(".attn1"):
            level = {640: 1, 1280: 2}[module.inner_dim]
            kept += 2 * (22 * module.inner_dim + 3 * rank) * height * width / 4**level + 4 * 77 * module.inner_dim
        elif type(module).__name__ == "Transformer2DModel":
            kept += 2 * module.in_channels * height * width / 4 ** {640: 1, 1280: 2}[module.in_channels]
        elif type(module).__name__ == "ResnetBlock2D":
            level = {320: 0, 640: 1, 1280: 2}[module.out_channels]
            kept += 2 * 2 * (module.in_channels + module.out_channels) * height * width / 4**level
    return kept


MAPS = 5
"""Maps of 128 channels that SDXL's and FLUX's encoder holds at full size: what its first layer made; and of a residual
block the input, the branch, their sum and that scaled."""


@pytest.mark.parametrize("rank", [16, 64, 256])
def test_memory_of_sdxl_agrees_with_a_table_by_layers(tmp_path: Path, rank: int) -> None:
    """Guards against a UNet forecast as if all of its blocks saw full resolution, or its VAE in half precision. Fewer
    blocks of attention than in the model, and its own at rank 64."""
    with torch.device("meta"):
        unet = {name: value for name, value in real_sdxl().config.items() if not name.startswith("_")}
    if rank != 64:
        unet["transformer_layers_per_block"] = (1, 2, 3)
    folder = meta_models.sdxl(tmp_path, **unet)
    config = config_from({"base": "sdxl", "objective": "onepic", "lora": {"layers": "attn", "rank": rank}})
    planned, count = preflight.planned(config, str(folder))
    for rows, columns, side in ((2, 2, 128), (2, 2, 192), (3, 4, 192)):  # 1,024, 2,304, 6,912 latent pixels
        made = preflight.pass_of(replace(config, resolution=side), planned, rows, columns)
        assert made is not None
        kept = sdxl_kept(planned.bare, rank, rows * side // 8, columns * side // 8)
        encoding = MAPS * 4 * 128 * side**2
        assert made.activations == pytest.approx(max(kept + 2 * count.parameters, encoding), rel=0.1)
        if rank == 64:
            assert made.base == pytest.approx(2 * 2.567e9, rel=0.02)
        assert made.others == pytest.approx(2 * (0.123e9 + 0.695e9) + 4 * 0.084e9, rel=0.02)
        assert made.lora == 16 * count.parameters


def test_checkpointing_copies_and_the_vae_are_counted(tmp_path: Path) -> None:
    """Guards against a forecast without the gradients' buckets, the moving average, or what is computed again."""
    folder = meta_models.flux_fill(tmp_path, num_layers=2, num_single_layers=2)
    plain = config_from({"lora": {"layers": "attn", "rank": 64}})
    spared = replace(plain, checkpointing=1)
    planned, count = preflight.planned(plain, str(folder))
    kept, again = (preflight.pass_of(config, planned, 1, 4) for config in (plain, spared))
    assert kept is not None and again is not None
    largest = 384 * (4 * 384) * 128 * 2  # the VAE's feature maps of a row, in bfloat16
    assert again.activations == pytest.approx(MAPS * largest, rel=0.1)  # more than a pass computed again
    assert kept.activations > again.activations
    assert again.recomputed > 0 == kept.recomputed
    several = preflight.pass_of(replace(plain, optimiser=OptimiserConfig(ema=0.9)), planned, 1, 4, processes=2)
    assert several is not None and several.lora == kept.lora + 8 * count.parameters
    assert "GiB (base " in str(kept) and "encoders and VAE 9.3" in str(kept)


def test_time(adapted: dict[str, nn.Module]) -> None:
    """Guards against units off by a thousand, and passes that checkpointing repeats for nothing."""
    made = forecast(adapted["attn"], transformer_work(adapted["attn"], 6912, 512), activations=0, checkpointing=1)
    assert made.seconds(1000) * UTILISATION == pytest.approx(0.444, abs=0.004)
    assert [peak_of(name) for name in ("NVIDIA H200", "NVIDIA H100 PCIe", "NVIDIA H100 80GB HBM3")] == [989, 756, 989]
    assert (peak_of("NVIDIA A100-SXM4-80GB"), peak_of("NVIDIA GeForce RTX 4090"), peak_of("cpu")) == (312, 165, None)

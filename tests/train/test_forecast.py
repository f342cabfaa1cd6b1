"""Forecast of memory and time: against a published table of counts, and against torch's own counter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from graphbuild_train.bases.flux_fill import FluxFill
from graphbuild_train.bases.sdxl import Sdxl
from graphbuild_train.config import LoraConfig
from graphbuild_train.forecast import GIB, UTILISATION, forecast, peak_of, transformer_work, unet_work
from graphbuild_train.lora import add_lora
from tests.train.test_lora import flux, inputs, layers_of, meta_flux, real_sdxl, sdxl

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
            made = forecast(adapted[layers], layers, work, checkpointing=checkpointing)  # type: ignore[arg-type]
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
    made = forecast(model, layers, transformer_work(model, 6, 3), batch=2)
    assert made.flops == pytest.approx(counted.get_total_flops(), rel=0.05)  # the first layers pass no gradient on


def test_flops_of_sdxl_agree_with_torchs_counter() -> None:
    """Guards against levels of the UNet that count at another resolution than theirs."""
    model = sdxl()
    add_lora(model, LoraConfig(rank=2), layers_of(Sdxl, model, "attn"))
    arguments = on_meta(inputs(model))
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        model.to("meta")(**arguments)
    made = forecast(model, "attn", unet_work(model, 64, 5), batch=2, checkpointing=1)
    assert made.recomputed == counted.get_total_flops()
    assert made.estimated


def test_memory_of_flux(adapted: dict[str, nn.Module]) -> None:
    """Guards against a forecast that says a run fits which does not: base, 16 bytes a trained parameter, and the
    measured activations."""
    work = transformer_work(adapted["attn"], 6912, 512)
    small, large = (forecast(adapted[name], name, work) for name in ("attn", "all"))  # type: ignore[arg-type]
    assert small.base == large.base == pytest.approx(22.2 * GIB, rel=0.01)
    assert (small.lora / GIB, large.lora / GIB) == (pytest.approx(0.39, abs=0.01), pytest.approx(20.7, abs=0.1))
    assert small.activations / GIB == pytest.approx(34.9, abs=0.1)
    assert large.activations / GIB == pytest.approx(54.2, abs=0.1)
    assert small.memory == small.base + small.lora + small.activations and not small.estimated
    again = forecast(adapted["attn"], "attn", work, batch=2, checkpointing=1, others=GIB)
    assert again.base == small.base + GIB and again.flops == 2 * small.flops
    half = forecast(adapted["attn"], "attn", work, checkpointing=2)
    assert half.activations / GIB == pytest.approx(34.9 / 2, rel=0.12)
    assert half.recomputed == pytest.approx(again.recomputed / 4)
    assert 2 * 2 < again.activations / GIB < 2 * 4
    said = str(small)
    assert "57.5 GiB" in said and "activations 34.9" in said and "estimated" not in said


def test_sdxl_is_estimated() -> None:
    """Guards against a UNet forecast as if all of its blocks saw full resolution, and without the word "estimated"."""
    with torch.device("meta"):
        model = real_sdxl()
        add_lora(model, LoraConfig(rank=32, alpha=4), layers_of(Sdxl, model, "attn"))
    work = unet_work(model, 128 * 128, 77)
    kept, again = (forecast(model, "attn", work, checkpointing=some) for some in (0, 1))
    assert again.recomputed / 1e12 == pytest.approx(6.8, abs=0.1)
    assert 1 < kept.activations / GIB < 10 and again.activations < kept.activations / 3
    assert "estimated" in str(kept)


def test_time(adapted: dict[str, nn.Module]) -> None:
    """Guards against units off by a thousand, and passes that checkpointing repeats for nothing."""
    made = forecast(adapted["attn"], "attn", transformer_work(adapted["attn"], 6912, 512), checkpointing=1)
    assert made.seconds(1000) * UTILISATION == pytest.approx(0.444, abs=0.004)
    assert [peak_of(name) for name in ("NVIDIA H200", "NVIDIA H100 PCIe", "NVIDIA H100 80GB HBM3")] == [989, 756, 989]
    assert (peak_of("NVIDIA A100-SXM4-80GB"), peak_of("NVIDIA GeForce RTX 4090"), peak_of("cpu")) == (312, 165, None)

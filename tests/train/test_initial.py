"""Runs that go on from a LoRA of a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from graphbuild_train.export.kohya import save_kohya
from graphbuild_train.export.lora_file import Lora, save_diffusers
from graphbuild_train.initial import go_on_from
from graphbuild_train.lora import adapter_config, lora_state
from tests.support.training import Ground
from tests.train.test_lora import stir


def changes(base: Any) -> dict[str, torch.Tensor]:
    """What the update adds to each weight, by layer."""
    lora = Lora(part=base.denoiser, state=lora_state(base.bare), adapter=adapter_config(base.bare))
    ends = (".lora_A.weight", ".lora_B.weight")
    return {
        layer: lora.scale(layer) * lora.state[layer + ends[1]] @ lora.state[layer + ends[0]] for layer in lora.layers
    }


@pytest.mark.numeric
def test_a_run_goes_on_from_a_file_whatever_its_scale(ground: Ground, tmp_path: Path) -> None:
    """Guards against an alpha that is taken for another, and a run that begins anew instead."""
    attn = {"layers": "attn", "rank": 4}
    theirs = ground.trainer("theirs", lora={**attn, "alpha": 8, "rslora": True}).base
    stir(theirs.bare)
    wanted = changes(theirs)
    lora = Lora(part="transformer", state=lora_state(theirs.bare), adapter=adapter_config(theirs.bare))
    file = save_diffusers(lora, tmp_path)
    ours = ground.trainer("ours", lora={**attn, "alpha": 2}, init=str(file))
    for layer, change in changes(ours.base).items():
        assert torch.allclose(change, wanted[layer], rtol=1e-4, atol=1e-6)

    single = {name: value for name, value in lora.state.items() if "to_out" in name}  # one layer of theirs each
    kohya = save_kohya(Lora(part="transformer", state=single, adapter=lora.adapter), tmp_path / "kohya.safetensors")
    other = ground.trainer("other", lora={**attn, "alpha": 2}).base
    go_on_from(kohya, other)
    for layer, change in changes(other).items():
        assert torch.allclose(change, wanted[layer] * ("to_out" in layer), rtol=1e-4, atol=1e-6)

    with pytest.raises(ValueError, match=r"lora_A.weight is \(4, \d+\), here \(2, \d+\) .*lora.rank"):
        ground.trainer("narrow", lora={**attn, "rank": 2}, init=str(file))

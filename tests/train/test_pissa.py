"""PiSSA: a run that begins with the base's largest components, and leaves a LoRA for the base as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from graphbuild_train.bases import load_base
from graphbuild_train.export.kohya import save_kohya
from graphbuild_train.export.lora_file import Lora, read_diffusers
from graphbuild_train.objective import objective_of
from tests.support.numerics import assert_close, error
from tests.support.training import NEVER, ROUNDINGS, Ground, state

pytestmark = pytest.mark.numeric


def pissa(**changes: Any) -> dict[str, Any]:
    return {"lora": {"layers": "all", "rank": 4, "alpha": 6, "init": "pissa", **changes}}


def predicted(base: Any, grid: Any) -> torch.Tensor:
    batch = base.encode(grid, 0)
    noisy = base.objective.corrupt(batch, 0)
    with torch.no_grad():
        found: torch.Tensor = base.predict(noisy.x, noisy.level, batch)
    return found


@pytest.mark.parametrize("rslora", [False, True])
def test_it_begins_as_the_base_and_ends_as_a_lora_of_the_base(ground: Ground, rslora: bool) -> None:
    """Guards against components that are not taken out of the frozen weights, and a file that would add them twice."""
    name = f"run {rslora}"
    trainer = ground.trainer(name, steps=3, **pissa(rslora=rslora))
    fresh = load_base("flux_fill", str(ground.model), objective_of("visualcloze_fill"), dtype=torch.float32)
    weights = dict(fresh.bare.named_parameters())
    for layer, module in trainer.base.bare.named_modules():
        if hasattr(module, "get_base_layer"):
            (scale, down, up), whole = (
                (module.scaling["default"], module.lora_A["default"].weight, module.lora_B["default"].weight),
                weights[f"{layer}.weight"],
            )  # fmt: skip
            assert_close(
                module.get_base_layer().weight + scale * up @ down, whole, terms=ROUNDINGS, mutant=whole * 1.01
            )
            kept = torch.linalg.svdvals(whole)[: len(down)]
            assert torch.allclose(torch.linalg.svdvals(scale * up @ down)[: len(down)], kept, rtol=0.05)
    trainer.fit()
    trainer.export()
    (grid, _) = next(trainer._grids(0))
    ours, untrained = predicted(trainer.base, grid), predicted(fresh, grid)
    fresh.pipe.load_lora_weights(trainer.out)
    theirs = predicted(fresh, grid)
    assert_close(ours, theirs, terms=10 * ROUNDINGS, mutant=untrained)
    assert error(theirs, untrained) > 1e-4
    saved = read_diffusers(trainer.out)
    assert saved.adapter["r"] == 8 and saved.recipe["lora"]["rank"] == 4
    assert read_diffusers(trainer.out / "checkpoints/step-00000003").state.keys() == saved.state.keys()


def test_a_resumed_run_is_the_same(ground: Ground) -> None:
    """Guards against components that are taken out once more, or of other weights, when a run is resumed."""
    options = {**pissa(), "optimiser": {"learning_rate": 1e-3, "ema": 0.9}, "watch": NEVER}
    whole = ground.trained("whole", steps=4, **options).out
    ground.trained("half", steps=2, **options)
    half = ground.trained("half", steps=4, **options).out
    ours, theirs = state(half), state(whole)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_kohyas_form_has_the_same_effect(ground: Ground, tmp_path: Path) -> None:
    """Guards against an exporter that takes the rank of a recipe for that of a file."""
    trainer = ground.trained("kohya", steps=2, **pissa(layers="attn"))
    trainer.export()
    lora = read_diffusers(trainer.out)
    single = {name: tensor for name, tensor in lora.state.items() if "to_out" in name}
    file = save_kohya(Lora(part=lora.part, state=single, adapter=lora.adapter), tmp_path / "lora.safetensors")
    read: Any = trainer.base.pipeline_class().lora_state_dict(str(file))
    back = read[0] if isinstance(read, tuple) else read
    for layer in {name.rpartition(".lora_")[0] for name in single}:
        down, up = (single[f"{layer}.lora_{side}.weight"] for side in "AB")
        again = back[f"transformer.{layer}.lora_B.weight"] @ back[f"transformer.{layer}.lora_A.weight"]
        change = lora.scale(layer) * up @ down
        assert_close(again, change, terms=ROUNDINGS, mutant=change * 1.01)

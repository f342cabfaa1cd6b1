"""Frozen bases of fewer bits: training stays close to that of the plain base, and everything else holds with them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from graphbuild_train.config import OptimiserConfig
from graphbuild_train.forecast import frozen_bytes
from graphbuild_train.lora import load_lora
from graphbuild_train.quantise import PackedLinear, pack
from graphbuild_train.sampling import loaded
from tests.support.long import long_form
from tests.support.training import NEVER, Ground, grounded, metrics, parts, state

TWO = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
FAR: dict[str, float] = {"int8": 0.03, "fp8": 0.1, "nf4": 0.15}
"""Kind -> largest distance of the LoRA from that of a plain base after the same steps, relative to its own norm."""
RUN: dict[str, Any] = {
    "steps": 4, "batch": 2, "lora": {"layers": "all", "rank": 4, "bias": True}, "optimiser": {"learning_rate": 0.003},
    "watch": {**NEVER, "validate": 4, "tasks": 2},
}  # fmt: skip


@pytest.fixture(scope="module")
def ground(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    pytest.importorskip("torchao", reason="quantised bases need the extra quantise")
    pytest.importorskip("bitsandbytes", reason="quantised bases need the extra quantise")
    with grounded(tmp_path_factory.mktemp("quantise"), photos) as made:
        yield made


@pytest.fixture(scope="module")
def plain(ground: Ground) -> Path:
    """A run on the base as it is."""
    return ground.trained("plain", **RUN).out


def falls(out: Path) -> float:
    """By how much the validation loss fell."""
    losses = [line["validation"]["loss"] for line in metrics(out) if "validation" in line]
    return float(losses[0] - losses[-1])


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two states are equal bit for bit; some optimisers count in plain numbers."""
    pairs = [(value, other[name]) for name, value in one.items()]
    return one.keys() == other.keys() and all(
        torch.equal(ours, theirs) if isinstance(ours, torch.Tensor) else ours == theirs for ours, theirs in pairs
    )


@pytest.mark.numeric
@pytest.mark.parametrize("kind", ["int8", "nf4", pytest.param("fp8", marks=long_form)])
def test_training_on_a_quantised_base_is_close_to_plain_training(kind: str, ground: Ground, plain: Path) -> None:
    """Guards against a layer without gradient, with the wrong scale, or a LoRA of rank 1 on a packed weight."""
    done = ground.trained(kind, **RUN, quantise=kind)
    ours, theirs = parts(state(done.out))["lora"], parts(state(plain))["lora"]
    assert ours.shape == theirs.shape and not torch.equal(ours, theirs)
    assert (ours - theirs).norm() <= FAR[kind] * theirs.norm()
    assert falls(done.out) == pytest.approx(falls(plain), rel=FAR[kind]) and falls(plain) > 0
    packed = [layer for layer in done.base.bare.modules() if isinstance(layer, PackedLinear)]
    assert len(packed) == len([name for name in done.lora if name.endswith("lora_A.weight")])
    held = sum(weight.nbytes for weight in done.base.bare.parameters() if not weight.requires_grad)
    assert held == frozen_bytes(done.setup.base.bare, done.config.quantise)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [pytest.param("int8", marks=long_form), pytest.param("fp8", marks=long_form), "nf4"])
def test_a_run_on_a_quantised_base_resumes(kind: str, ground: Ground) -> None:
    """Guards against a resumed run that quantises otherwise."""
    whole = ground.trained(kind, **RUN, quantise=kind).out  # at once where the run above has been made
    ground.trained(f"{kind}-half", **{**RUN, "steps": 2}, quantise=kind)
    halves = ground.trained(f"{kind}-half", **RUN, quantise=kind)
    assert halves.restored is not None
    assert same(state(halves.out), state(whole))


def test_a_lora_is_sampled_on_the_base_that_it_was_trained_on(ground: Ground) -> None:
    """Guards against a loader that takes packed weights for others, and text encoders that cannot be asked."""
    trainer = ground.trainer("exported", **{**RUN, "steps": 1}, quantise="nf4", text="cpu")
    trainer.fit()
    trainer.export()
    base = loaded(ground.config(**{**RUN, "quantise": "nf4", "text": "cpu"}), trainer.out)
    task = trainer.sampler.task(0, 32, cells=trainer.config.cells)
    with trainer.finished():
        ours, theirs = (made.sample([task], steps=2, guidance=30.0, seed=0) for made in (base, trainer.base))
    assert len(ours[0]) == len(task.holes)
    assert all(one.tobytes() == other.tobytes() for one, other in zip(ours[0], theirs[0], strict=True))


@pytest.mark.parametrize("kind", ["int8", "fp8", "nf4"])
def test_neither_pass_keeps_an_unpacked_weight(kind: Any) -> None:
    """Guards against a layer whose backward pass needs what packing has saved, and against a wrong gradient."""
    pytest.importorskip("torchao")
    pytest.importorskip("bitsandbytes")
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(128, 192)).requires_grad_(False)
    if kind != "nf4":
        quantize_(model, Int8WeightOnlyConfig() if kind == "int8" else Float8WeightOnlyConfig())
    pack(model, kind)
    x, kept = torch.randn(3, 128, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.nbytes) or tensor, lambda t: t):
        made = model(x)
    weight = model[0].weight
    assert sum(kept) <= 1.2 * 128 * 192 and weight.shape == (192, 128)
    assert torch.allclose(made, x @ weight.T + model[0].bias, atol=1e-5)
    made.sum().backward()
    assert x.grad is not None and torch.allclose(x.grad, weight.sum(0).expand(3, -1), atol=1e-4)
    model.to(torch.bfloat16)
    assert torch.equal(model[0].weight, weight.bfloat16())


@pytest.mark.slow
def test_adam_of_8_bits_resumes_and_is_close_to_adam(ground: Ground, plain: Path) -> None:
    """Guards against moments that a checkpoint loses or cannot hold."""
    eight = {**RUN, "optimiser": {"name": "adamw_8bit", "learning_rate": 0.003, "options": {"min_8bit_size": 64}}}
    whole = ground.trained("eight", **eight).out
    ground.trained("eight-half", **{**eight, "steps": 2})
    halves = ground.trained("eight-half", **eight)
    ours, theirs = state(whole), state(plain)
    assert any(isinstance(value, torch.Tensor) and value.dtype == torch.uint8 for value in ours.values())
    assert same(state(halves.out), ours)
    one, other = (torch.cat([found[name].flatten() for name in sorted(found) if name.startswith("lora")])
                  for found in (ours, theirs))  # fmt: skip
    assert (one - other).norm() <= 0.1 * other.norm()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param("prodigyopt:Prodigy", marks=long_form), "schedulefree:AdamWScheduleFree"]
)
def test_optimisers_of_other_packages_train_and_resume(name: str, ground: Ground) -> None:
    """Guards against a resume that is not the run it continues, and an average that users do not get."""
    pytest.importorskip(name.partition(":")[0])
    options = {**RUN, "optimiser": {"name": name, "learning_rate": 0.003}}
    whole = ground.trained(f"whole-{name}", **options)
    ground.trained(f"half-{name}", **{**options, "steps": 2})
    halves = ground.trained(f"half-{name}", **options)
    found = state(whole.out)
    assert falls(whole.out) > 0
    assert same(state(halves.out), found)
    assert ("schedulefree" in name) == any(entry.startswith("ema ") for entry in found)


def test_an_optimiser_that_there_is_not_is_refused_before_anything_is_loaded(ground: Ground) -> None:
    """Guards against gigabytes loaded for a misspelt name."""
    for optimiser, said in [
        (OptimiserConfig(name="torch.optim:Adan"), "optimiser 'torch.optim:Adan'"),
        (OptimiserConfig(name="torch.nn:Linear"), "is no optimiser"),
        (OptimiserConfig(options={"momentum": 1}), "refuses them"),
    ]:
        from graphbuild_train.optimiser import check

        with pytest.raises(ValueError, match=said):
            check(optimiser)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "shard"),
    [pytest.param("int8", True, marks=long_form), ("nf4", True), pytest.param("int8", False, marks=long_form)],
)
def test_two_processes_equal_one(kind: str, shard: bool, ground: Ground, plain: Path) -> None:
    """Guards against a base that is put together wrongly from its parts, gradients that are not shared, and files that
    differ from those of one process."""
    options = {**RUN, "quantise": kind, "steps": 2, "micro_batch": 1}
    one = ground.trained(f"one-{kind}-{shard}", **options)
    done = ground.launch(f"two-{kind}-{shard}", *TWO, **{**options, "shard": shard})
    two = ground.folder / f"two-{kind}-{shard}"
    assert done.returncode == 0, done.stderr
    ours, theirs = parts(state(two)), parts(state(one.out))
    for name, value in theirs.items():
        assert (ours[name] - value).norm() <= 1e-5 * value.norm()
    assert falls(two) == pytest.approx(falls(one.out), rel=1e-4)
    load_lora(one.base.bare, {name[5:]: value for name, value in state(two).items() if name.startswith("lora ")})
    assert (two / "pytorch_lora_weights.safetensors").exists()

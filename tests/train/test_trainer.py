"""The loop: every sample has noise of its own, a step is what it should be, and every base goes through it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from graphbuild_train.bases import load_base
from graphbuild_train.bases.flux_fill import FluxFill
from graphbuild_train.batch import LatentBatch
from graphbuild_train.objective import Objective
from tests.support.numerics import assert_close, rounding
from tests.support.tiny_models import save_flex2, save_flux_dev
from tests.support.tiny_models_other import save_flux2_klein, save_qwen_edit, save_sdxl
from tests.support.training import AVERAGED, NEVER, Ground, recorded, state

# ---- D4: noise ---------------------------------------------------------------------------------------------------


def test_every_sample_of_every_round_and_process_has_noise_of_its_own(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against the same noise on all processes, as in mlcommons/training#844, or again in each round."""
    drawn: list[tuple[Tensor, Tensor]] = []
    corrupt = Objective.corrupt

    def corrupted(self: Objective, batch: LatentBatch, seed: int) -> Any:
        noisy = corrupt(self, batch, seed)
        drawn.extend(zip(noisy.target + batch.z, noisy.level[:, 0], strict=True))
        return noisy

    monkeypatch.setattr(Objective, "corrupt", corrupted)
    ground.trained("rounds", walks=8, steps=6)  # three rounds over the same eight grid tasks
    assert len(drawn) == 24 == len({float(level) for _, level in drawn})
    noise = torch.stack([noise.flatten()[:512] for noise, _ in drawn])
    likeness = torch.corrcoef(noise) - torch.eye(24)
    assert likeness.abs().max() < 0.25 and noise.std() == pytest.approx(1, abs=0.05)


# ---- D5: precision -----------------------------------------------------------------------------------------------


def test_only_the_trained_model_is_cast(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a float32 VAE that validates and paints in bfloat16, with other latents than it trains on."""
    once = {"tasks": 1, "samples": 1, "sample_steps": 1}
    trainer = ground.trainer("cast", dtype="bfloat16", watch={**NEVER, **once})
    seen: dict[str, set[bool]] = {"vae": set(), "model": set()}

    def spied(name: str, call: Any) -> Any:
        def with_note(*arguments: Any, **options: Any) -> Any:
            seen[name].add(torch.is_autocast_enabled("cpu"))
            return call(*arguments, **options)

        return with_note

    for call in ("encode", "decode"):
        monkeypatch.setattr(trainer.base.pipe.vae, call, spied("vae", getattr(trainer.base.pipe.vae, call)))
    block = trainer.base.bare.x_embedder
    monkeypatch.setattr(block, "forward", spied("model", block.forward))
    with trainer.finished():
        assert trainer.validation() is not None
        trainer._sample()
    assert seen == {"vae": {False}, "model": {True}}
    assert "forward" not in vars(trainer.base.bare)


def test_a_float32_lora_on_a_bfloat16_base_moves_at_a_small_learning_rate(ground: Ground) -> None:
    """Guards against weights in bfloat16, where steps this small are lost."""
    options: dict[str, Any] = {"dtype": "bfloat16", "optimiser": {"learning_rate": 1e-6}, "lora": {"alpha": 4096}}
    trainer = ground.trainer("half", **options)
    begun = {name: tensor.clone() for name, tensor in trainer.lora.items()}
    dtypes = {name.count("lora_") > 0: weight.dtype for name, weight in trainer.base.bare.named_parameters()}
    assert dtypes == {True: torch.float32, False: torch.bfloat16}
    for steps, wanted in ((1, "lora_B"), (3, "lora_")):
        after = ground.trained("half", steps=steps, **options).lora
        pairs = [(begun[name], tensor) for name, tensor in after.items() if wanted in name]
        moved = [float((old != new).double().mean()) for old, new in pairs]
        assert min(moved) > 0.99 and all(new.dtype == torch.float32 for _, new in pairs)
    assert all(tensor.dtype == torch.float32 for tensor in state(trainer.out).values())
    assert all(map(math.isfinite, recorded(trainer.out, "loss")))


# ---- optimiser -----------------------------------------------------------------------------------------------------


def test_a_lora_sees_activations_as_they_are(ground: Ground) -> None:
    """Guards against a float32 copy of the input of every adapted layer: 2 GiB per 1,000 tokens of FLUX.1."""
    trainer = ground.trainer("copies", dtype="bfloat16", steps=1)
    seen: set[torch.dtype] = set()
    downs = [module for name, module in trainer.base.bare.named_modules() if name.endswith("lora_A.default")]
    for module in downs:
        module.register_forward_pre_hook(lambda _, inputs: seen.add(inputs[0].dtype))
    trainer.fit()
    assert len(downs) == 15 and torch.float32 not in seen


@pytest.mark.numeric
def test_steps_are_those_of_adam_with_clipping_schedule_and_average(ground: Ground) -> None:
    """Guards against a clip, warm-up, decay or average that is configured and not applied."""
    rates = {
        "learning_rate": 1e-2, "schedule": "linear", "warmup": 2, "clip": 0.004, "weight_decay": 0.1, "ema": 0.5
    }  # fmt: skip
    trainer = ground.trainer("adam", optimiser=rates, steps=4)
    trainer._begin()
    own, undecayed = ([each.detach().double().requires_grad_() for each in trainer.parameters] for _ in range(2))
    averages = [parameter.detach().clone() for parameter in own]
    references = [
        torch.optim.AdamW(own, lr=1.0, weight_decay=0.1),
        torch.optim.AdamW(undecayed, lr=1.0, weight_decay=0),
    ]
    rate, total_terms = [0.005, 0.01, 0.01, 0.005], sum(parameter.numel() for parameter in own)
    gradients: list[Tensor] = []

    def noted(optimiser: torch.optim.Optimizer, *_: Any) -> None:
        gradients[:] = [parameter.grad.clone() for parameter in optimiser.param_groups[0]["params"]]

    trainer.optimiser.register_step_pre_hook(noted)
    for step in range(4):
        done = trainer._step()
        trainer.step += 1
        total = torch.cat([gradient.flatten() for gradient in gradients]).norm()
        assert done.rate == pytest.approx(rate[step]) and done.norm > 0.004
        assert float(total) <= 0.004 * (1 + rounding(total_terms))
        for reference in references:
            for parameter, gradient in zip(reference.param_groups[0]["params"], gradients, strict=True):
                parameter.grad = gradient.double()
            reference.param_groups[0]["lr"] = rate[step]
            reference.step()
        decay = min(0.5, (1 + step) / (10 + step))
        averages = [decay * old + (1 - decay) * new.detach() for old, new in zip(averages, own, strict=True)]
    found = [parameters_to_vector(each) for each in (trainer.parameters, trainer.ema.values())]
    latest, average, wrong = (parameters_to_vector(each) for each in (own, averages, undecayed))
    assert_close(found[0], latest, terms=4 * 10, mutant=wrong)  # four steps of ten operations
    assert_close(found[1], average, terms=4 * 10, mutant=latest)


def test_a_gradient_that_is_not_finite_stops_the_run_before_it_does_harm(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against weeks of training a LoRA that is all NaN."""
    trainer = ground.trainer("nan")
    begun = {name: tensor.clone() for name, tensor in trainer.lora.items()}
    monkeypatch.setattr(FluxFill, "predict", lambda self, x, level, batch: x * trainer.parameters[0].sum() * math.nan)
    with pytest.raises(FloatingPointError, match=r"step 1: loss nan, gradient nan"):
        trainer.fit()
    assert all(torch.equal(tensor, begun[name]) for name, tensor in trainer.lora.items())


def test_a_gpu_that_is_too_small_is_said_with_what_helps(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a page of CUDA, and against an exit code that means a wrong recipe."""

    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(FluxFill, "predict", fail)
    with pytest.raises(MemoryError, match=r"step 1: out of GPU memory; try micro_batch: 1, checkpointing: 1,"):
        ground.trained("small")


def test_memory_that_does_not_suffice_is_said_wherever_it_is_wanted(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against a traceback after an hour, from a model, a validation or a picture that is too large."""

    def fail(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    watch = {**NEVER, "validate": 1, "sample": 1, "tasks": 1, "samples": 1}
    for place, words in (
        ("graphbuild_train.trainer.load_base", "loading the model: out of GPU memory; try"),
        ("graphbuild_train.trainer.validate", "validation: out of GPU memory; try"),
        ("graphbuild_train.bases.flux_fill.FluxFill.sample", r"sampling \(watch.sample: 0 leaves it out\): out of"),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(place, fail)
            with pytest.raises(MemoryError, match=words):
                ground.trained("wanted", steps=1, watch={**watch, "sample": int("sample" in place)})
    trainer = ground.trainer("rehearsed")
    with monkeypatch.context() as patched:
        patched.setattr(FluxFill, "predict", fail)
        with pytest.raises(MemoryError, match="the largest pass: out of GPU memory"):
            trainer._rehearse()


def test_the_rehearsal_of_the_largest_pass_leaves_no_trace(ground: Ground) -> None:
    """Guards against a first step with somebody else's gradients, or other noise."""
    trainer, shapes = ground.trainer("rehearsal", optimiser=AVERAGED), []
    before = {name: tensor.clone() for name, tensor in trainer.lora.items()}
    trainer.base.bare.register_forward_pre_hook(
        lambda _, __, options: shapes.append(tuple(options["hidden_states"].shape)), with_kwargs=True
    )
    draws = torch.get_rng_state()
    trainer._rehearse()
    assert shapes == [(2, 2 * 2 * 2 * 2, 384)]  # two rows of two cells of 2 x 2 tokens
    assert all(parameter.grad is None for parameter in trainer.base.bare.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.lora.items())
    assert torch.equal(torch.get_rng_state(), draws)


def test_norms_stay_out_of_autocast(ground: Ground) -> None:
    """Guards against float32 copies of all that passes a norm: 9 GiB for the largest grids of FLUX.1."""
    trainer = ground.trainer("norms", dtype="bfloat16", steps=1)
    seen: set[torch.dtype] = set()
    norms = [
        module for module in trainer.base.bare.modules() if isinstance(module, torch.nn.LayerNorm | torch.nn.RMSNorm)
    ]
    for module in norms:
        module.register_forward_hook(lambda _, __, made: seen.add(made.dtype))
    trainer.fit()
    assert len(norms) >= 8 and seen == {torch.bfloat16}


def test_targets_that_match_nothing_are_refused(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against training nothing, or everything, where a model names its layers otherwise."""
    monkeypatch.setattr(FluxFill, "attention", ("attention.query",))
    with pytest.raises(ValueError, match=r"targets: none; allowed: names of linear layers of FluxTransformer2DModel"):
        ground.trainer("nothing", lora={"layers": "attn"})


# ---- every base ----------------------------------------------------------------------------------------------------


BASES = {
    "sdxl": (save_sdxl, "onepic"),
    "flux_dev": (save_flux_dev, "visualcloze_dev"),
    "flux_dev-views": (save_flux_dev, "onediffusion"),
    "flux2_klein": (save_flux2_klein, "flux2_klein"),
    "flex2": (save_flex2, "visualcloze_fill"),
    "qwen_edit": (save_qwen_edit, "qwen_edit"),
}


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
@pytest.mark.numeric
@pytest.mark.parametrize("name", BASES)
def test_every_base_trains_saves_and_comes_back_in_a_fresh_pipeline(
    ground: Ground, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against a base that only works outside the loop, and a file that its pipeline does not read."""
    monkeypatch.setattr(pipeline_qwenimage_edit_plus, "VAE_IMAGE_SIZE", 64 * 64)  # of a reference, not a megapixel
    save, preset = BASES[name]
    base = name.partition("-")[0]
    watch = {"checkpoint": 0, "validate": 1, "tasks": 1, "sample": 2, "samples": 1, "sample_steps": 2}
    trainer = ground.trained(
        name, base=base, model=str(save(tmp_path / "model")), objective=preset, resolution=64, steps=2, watch=watch,
        checkpointing=1, optimiser={"learning_rate": 0.1, "ema": 0.5}, lora={"layers": "attn", "rank": 4, "alpha": 2},
    )  # fmt: skip
    trainer.export()
    assert len(recorded(trainer.out, "loss")) == 2 and all(map(math.isfinite, recorded(trainer.out, "loss")))
    assert len(list(trainer.out.glob("samples/step-00000002/*.png"))) == 1
    with torch.no_grad(), trainer.finished():
        batch = trainer.base.encode(*next(trainer._grids(0)))
        noisy = trainer.objective.corrupt(batch, 0)
        wanted = trainer.base.predict(noisy.x, noisy.level, batch)
    fresh = load_base(base, str(tmp_path / "model"), trainer.objective, device="cpu", dtype=torch.float32)
    with torch.no_grad():
        plain = fresh.predict(noisy.x, noisy.level, batch)
        fresh.pipe.load_lora_weights(trainer.out, weight_name="pytorch_lora_weights.safetensors")
        found = fresh.predict(noisy.x, noisy.level, batch)
    assert_close(found, wanted, terms=1000, mutant=plain)  # ten layers with sums of about a hundred terms

"""The loop: one step is one step however it is cut up, the LoRA is what is trained, and every base goes through it."""

from __future__ import annotations

import io
import json
import math
import shutil
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus
from PIL import Image
from rich.console import Console
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector
from torch.utils.checkpoint import checkpoint

from graphbuild.store.repair import repair
from graphbuild.store.verify import verify
from graphbuild_train import journal as progress
from graphbuild_train import model_setup as memory
from graphbuild_train.bases import load_base
from graphbuild_train.bases.flux_fill import FluxFill
from graphbuild_train.batch import LatentBatch
from graphbuild_train.objective import Objective
from graphbuild_train.trainer import Step, Trainer
from tests.support.annotators import build, complete, start
from tests.support.numerics import assert_close, rounding
from tests.support.object_store import ObjectStore, local_content
from tests.support.tiny_models import save_flex2, save_flux_dev
from tests.support.tiny_models_other import save_flux2_klein, save_qwen_edit, save_sdxl
from tests.support.training import (
    NEVER,
    Ground,
    assert_same_steps,
    grounded,
    metrics,
    recorded,
    said,
    state,
    uneven_passes,
)

EVERY = {"learning_rate": 1e-3, "ema": 0.9}
ONE_TASK: dict[str, Any] = {"optimiser": EVERY, "mix": "step"}
"""Steps that do not depend on `micro_batch`."""


@pytest.fixture(scope="module")
def ground(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    with grounded(tmp_path_factory.mktemp("loop"), photos) as made:
        yield made


@pytest.fixture(scope="module")
def plain(ground: Ground) -> Path:
    """Five steps of four samples in passes of two."""
    return ground.trained("plain", **ONE_TASK).out


@pytest.fixture(scope="module")
def uneven(ground: Ground) -> Path:
    """The same steps with a mistake."""
    with uneven_passes():
        return ground.trained("uneven", **ONE_TASK).out


# ---- D3: the same steps ----------------------------------------------------------------------------------------


@pytest.mark.numeric
@pytest.mark.parametrize("micro_batch", [1, 4])
def test_accumulation_does_not_change_a_step(ground: Ground, plain: Path, uneven: Path, micro_batch: int) -> None:
    """Guards against a mean over tokens or micro batches of different sizes."""
    out = ground.trained(f"micro{micro_batch}", **ONE_TASK, micro_batch=micro_batch).out
    assert_same_steps(out, plain, uneven)


@pytest.mark.numeric
@pytest.mark.parametrize("every", [1, 2])
def test_checkpointing_changes_memory_only(
    ground: Ground, plain: Path, uneven: Path, every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against blocks that are skipped or whose LoRA gets no gradient, and against a switch that does nothing."""
    again: list[str] = []

    def computed(block: Any, *arguments: Any, **options: Any) -> Any:
        again.append(type(block).__name__)
        return checkpoint(block, *arguments, **options)

    monkeypatch.setattr(memory, "checkpoint", computed)
    out = ground.trained(f"spare{every}", **ONE_TASK, checkpointing=every).out
    assert_same_steps(out, plain, uneven)
    assert len(again) == 5 * 2 * (2 if every == 1 else 1)  # two blocks, five steps of two passes


@pytest.mark.numeric
def test_workers_do_not_change_a_step(ground: Ground, plain: Path) -> None:
    """Guards against samples that come in another order from other processes."""
    out = ground.trained("workers", **ONE_TASK, workers=2).out
    assert all(torch.equal(tensor, state(out)[name]) for name, tensor in state(plain).items())


def test_a_graph_in_a_store_trains_the_same(
    ground: Ground, plain: Path, photos: Path, s3: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against a loader that cannot read from a store, or waits for ever in a forked worker. The graph has been
    through what graphs in stores go through: its build was killed, and a part was damaged and repaired."""
    url = s3.new_url()
    process = start(photos, url, ["canny"], shard_size=4, environment=s3.environment)
    while sum(line.startswith("PUT") and "/nodes/" in line for line in s3.requests) < 3 and process.is_alive():
        time.sleep(0.005)
    process.kill()
    process.join()
    assert process.exitcode == -9
    complete(build(photos, url, ["canny"], shard_size=4))
    part = next(name for name in s3.content(url) if name.startswith("nodes/kind=canny/"))
    s3.put(f"{url}/{part}", b"x" * len(s3.content(url)[part]))
    assert part in repair(url).withdrawn
    complete(build(photos, url, ["canny"], shard_size=4))
    assert verify(url, "full").problems == []
    remote, local = (
        {name: data for name, data in files.items() if name.startswith(("items/", "nodes/", "edges/", "heads/"))}
        for files in (s3.content(url), local_content(ground.graph))
    )
    assert remote == local
    monkeypatch.setattr(ground, "graph", url)
    s3.requests.clear()
    out = ground.trained("stored", **ONE_TASK, workers=1).out
    assert recorded(out, "loss") == recorded(plain, "loss")
    reads = [request for request in s3.requests if request.startswith("GET") and "/nodes/" in request]
    assert 0 < len(reads) <= 30  # for 80 cells in 10 parts, by two threads


@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:The .grad attribute of a Tensor:UserWarning")
def test_compiling_does_not_change_a_step(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a compiled block that leaves out its LoRA. It is what torch captures that matters, forwards and
    backwards, so that no C++ is made of it here."""
    compile_block = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self, **o: compile_block(self, backend="aot_eager", **o))
    options = {"steps": 2, "sampler": {"rows": [1.0]}}
    one = ground.trained("eager", **options).out
    with uneven_passes():
        wrong = ground.trained("eager-uneven", **options).out
    two = ground.trained("compiled", **options, compile=True).out
    assert_same_steps(two, one, wrong)


def test_compiling_is_skipped_aloud_without_a_compiler(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a crash, or days at half the speed, on a machine without a compiler."""
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert "compile: skipped, there is no C++ compiler" in said(ground.trained("bare", steps=1, compile=True))


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
    trainer, shapes = ground.trainer("rehearsal", optimiser=EVERY), []
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


# ---- what is left behind -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def watched(ground: Ground) -> Trainer:
    """A run that is watched at every second step and exported."""
    watch = {"checkpoint": 2, "keep": 1, "validate": 2, "tasks": 2, "sample": 2, "samples": 1, "sample_steps": 2}
    trainer = ground.trained("watched", steps=3, optimiser=EVERY, watch=watch)
    trainer.export()
    return trainer


def test_a_run_is_recorded_for_machines_people_and_tensorboard(watched: Trainer) -> None:
    """Guards against a run of which nothing can be said afterwards."""
    board_file = import_module("tensorboard.backend.event_processing.event_accumulator")
    lines = metrics(watched.out)
    assert [line["step"] for line in lines] == [0, 1, 2, 2, 3, 3]
    assert {"loss", "norm", "rate", "seconds", "waited", "work"} <= lines[1].keys()
    assert 0 < lines[1]["waited"] < lines[1]["seconds"] and lines[1]["work"] > 1e8
    assert "step 0: validation loss" in said(watched) and " it/s, " in said(watched) and "TFLOP/s" in said(watched)
    board = board_file.EventAccumulator(str(watched.out)).Reload()
    assert {"train/loss", "train/rate", "validation/loss", "validation/level 7"} <= set(board.Tags()["scalars"])
    assert [event.step for event in board.Scalars("train/loss")] == [1, 2, 3]
    assert [folder.name for folder in sorted((watched.out / "checkpoints").iterdir())] == ["step-00000003"]


def test_speed_and_memory_are_said_and_recorded_where_they_are_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against a slow run on a GPU that nobody notices."""
    monkeypatch.setattr(progress, "_memory", lambda: {"memory": 3.25})
    console = Console(file=io.StringIO(), width=200)
    journal = progress.Journal(tmp_path, console, first=0, last=9)
    journal.peak = 4.0
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=iter((100.0, 110.0, 110.0)).__next__))
    with journal:
        journal.step(1, Step(loss=0.5, norm=1.0, rate=1e-4, seconds=2.0, waited=0.5, work=4e12))
    assert console.file.getvalue() == (  # type: ignore[attr-defined]
        "step 1/9: loss 0.5000, 0.50 it/s, 25% waiting, 2 TFLOP/s (MFU 50%), peak 3.2 GiB, 0:01:20 left\n"
    )
    (line,) = metrics(tmp_path)
    assert (line["memory"], line["work"], line["waited"]) == (3.25, 4e12, 0.5)


def test_pictures_are_sampled_on_the_way(watched: Trainer) -> None:
    """Guards against a sampler that is first tried when the LoRA is published."""
    files = sorted(watched.out.glob("samples/*/*.png"))
    assert [file.parent.name for file in files] == ["step-00000002", "step-00000003"]
    with Image.open(files[0]) as picture:
        assert picture.width > 3 * 32


def test_the_export_holds_the_average_its_recipe_and_a_card(watched: Trainer) -> None:
    """Guards against an export of the raw weights, and against a file of which nobody knows where it comes from."""
    with safe_open(watched.out / "pytorch_lora_weights.safetensors", "pt") as file:
        recipe = json.loads(file.metadata()["graphbuild"])
        found = {name.removeprefix("transformer."): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert found.keys() == watched.ema.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in watched.ema.items())
    assert any(not torch.equal(found[name], tensor) for name, tensor in watched.lora.items())
    assert (recipe["snapshot"], recipe["steps_done"]) == (watched.sampler.snapshot, 3)
    card = (watched.out / "README.md").read_text()
    assert "VisualClozePipeline" in card and "not stated: 18 items" in card


def test_before_the_first_step_people_are_told_what_it_takes(ground: Ground) -> None:
    """Guards against finding out after a night that no path is served, or that memory does not suffice."""
    from graphbuild_train import preflight

    trainer = ground.trainer("before", micro_batch=4, walks=8, cache_gb=0.00001)
    trainer.journal.say(preflight.lines(trainer.setup))
    words = said(trainer)
    assert "LoRA: 15 layers, 10,752 parameters" in words and "largest pass, 4 x 4 cells: memory" in words
    assert "TFLOP at most, the device's speed is not known" in words
    assert "VAE cache: at most" in words and "% of them" in words
    assert [line.split() for line in words.splitlines()[-3:]] == [
        ["conditional", "generation", "1", "1", "15..15", "0.333"],
        ["dense", "prediction", "1", "1", "15..15", "0.333"],
        ["restoration", "1", "1", "15..15", "0.333"],
    ]


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

"""What the trainer costs beside the model: our step against a plain loop over diffusers and peft that does the same.

    python tests/bench/bench_train.py            a small FLUX.1-Fill on one CPU thread, float32
    python tests/bench/bench_train.py --gpu      FLUX.1's size, random bfloat16 weights: seconds, TFLOP/s, memory

The loops take the same grid tasks through the same loader, in turns; ratios are of the CPU seconds of the same turn,
with a bootstrap interval. One plain loop encodes pictures and words of a pass together, as training scripts do; the
other one by one, as ours does, so that bits depend neither on a batch nor on a cache. The aim is an upper bound of
1.02. Then a step with cached latents and words against one without, of the model of the recipe `tiny`: the aim is 1.2
times as fast.
"""

from __future__ import annotations

import argparse
import gc
import io
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[2] / "train")]

import diffusers
import numpy as np
import peft
import torch
from rich.console import Console
from torch.nn.functional import pixel_unshuffle
from torch.utils.data import DataLoader

from graphbuild.data import GridBatch, GridTasks, collate
from graphbuild_train.bases import tiny
from graphbuild_train.config import TrainConfig, config_from
from graphbuild_train.forecast import GIB, forecast, peak_of, transformer_work
from graphbuild_train.journal import quiet_libraries
from graphbuild_train.lora import add_lora
from graphbuild_train.model_setup import autocast_only, compiled, sound_attention, spare
from graphbuild_train.objective import mean_logit
from graphbuild_train.trainer import Trainer
from tests.support.annotators import build, write_photos
from tests.support.benchmarks import record

PATHS = """
paths:
  - {name: canny-to-image, cells: [canny, image]}
"""
BATCH, PASS = 4, 2


def prepare(folder: Path) -> TrainConfig:
    """A graph of photographs and a FLUX.1-Fill of 2 + 4 blocks of width 256."""
    build(write_photos(folder / "photos", range(18)), folder / "graph", ["canny"])
    (folder / "paths.yaml").write_text(PATHS)
    library: Any = diffusers
    pipe = library.VisualClozePipeline.from_pretrained(tiny.save(folder / "tiny"), resolution=384)
    torch.manual_seed(0)
    transformer = library.FluxTransformer2DModel(
        in_channels=384, out_channels=64, num_layers=2, num_single_layers=4, attention_head_dim=32,
        num_attention_heads=8, joint_attention_dim=16, pooled_projection_dim=16, axes_dims_rope=(8, 12, 12),
        guidance_embeds=True,
    )  # fmt: skip
    pipe.register_modules(transformer=transformer)
    pipe.save_pretrained(folder / "model")
    return config_from({
        "model": str(folder / "model"), "dtype": "float32", "paths": str(folder / "paths.yaml"), "resolution": 64,
        "sampler": {"split": "train", "validation": 0.0, "rows": [0.0, 1.0]}, "lora": {"rank": 16},
        "batch": BATCH, "micro_batch": PASS, "watch": {"checkpoint": 0, "validate": 0, "sample": 0},
    })  # fmt: skip


class Plain:
    """The same training in the fewest lines: FLUX.1-Fill, diffusers, peft, AdamW."""

    def __init__(self, config: TrainConfig, trainer: Trainer, *, together: bool) -> None:
        self.together = together
        library: Any = diffusers
        self.pipe = library.VisualClozePipeline.from_pretrained(config.model)
        for module in (self.pipe.vae, self.pipe.text_encoder, self.pipe.text_encoder_2, self.pipe.transformer):
            module.requires_grad_(False).eval()
        names = [name.removesuffix(".lora_A.weight") for name in trainer.lora if name.endswith(".lora_A.weight")]
        adapter = peft.LoraConfig(r=16, lora_alpha=16, target_modules=names)
        self.pipe.transformer.add_adapter(adapter)
        self.parameters = [p for p in self.pipe.transformer.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(self.parameters, lr=1e-4, weight_decay=0, fused=True)
        tasks = GridTasks(trainer.sampler, resolution=config.resolution, batch=PASS, rank=0, world=1)
        self.loader = iter(DataLoader(tasks, batch_size=PASS, collate_fn=collate))

    def step(self) -> None:
        for _ in range(BATCH // PASS):
            self.backward(next(self.loader))
        torch.nn.utils.clip_grad_norm_(self.parameters, 2.0)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)

    def backward(self, grid: GridBatch) -> None:
        with torch.no_grad():
            context, truth = (row.float() / 127.5 - 1 for row in grid.rows())
            half = truth.shape[2]
            mask = grid.holes.repeat_interleave(truth.shape[3] // grid.holes.shape[1], 1)[:, None, None]
            mask = mask.expand(-1, -1, half, -1)
            first, last, z = (self.encode(part) for part in (context, truth.masked_fill(mask, -1.0), truth))
            z = torch.cat([first, z], 1)
            masks = (torch.zeros_like(mask), mask)
            hidden = torch.cat([pack(pixel_unshuffle(part.float(), 8)) for part in masks], 1)
            extra = torch.cat([torch.cat([first, last], 1), hidden], -1)
            words = self.each(lambda ids: self.pipe.text_encoder_2(ids)[0], self.tokens(self.pipe.tokenizer_2, grid))
            pooled = self.each(lambda ids: self.pipe.text_encoder(ids).pooler_output,
                               self.tokens(self.pipe.tokenizer, grid))  # fmt: skip
            height, width = half // 16, truth.shape[3] // 16
            grids = [torch.cartesian_prod(*map(torch.arange, (1, height, width))) for _ in range(2)]
            ids = torch.cat([part + torch.tensor([row, 0, 0]) for row, part in enumerate(grids, start=1)]).float()
        mu = mean_logit("dynamic", torch.tensor([z.shape[1]]))
        level = torch.sigmoid(torch.randn(len(z)) + mu).float()
        noise = torch.randn_like(z)
        x = (1 - level)[:, None, None] * z + level[:, None, None] * noise
        velocity = self.pipe.transformer(
            hidden_states=torch.cat([x, extra], -1), timestep=level, guidance=torch.ones(len(z)),
            pooled_projections=pooled, encoder_hidden_states=words, txt_ids=torch.zeros(words.shape[1], 3),
            img_ids=ids, return_dict=False,
        )[0]  # fmt: skip
        ((velocity - noise + z).square().mean() * len(z) / BATCH).backward()

    def tokens(self, tokenizer: Any, grid: GridBatch) -> Any:
        options = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        return tokenizer(grid.prompts, max_length=tokenizer.model_max_length, **options).input_ids

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        vae = self.pipe.vae
        latents = self.each(lambda picture: vae.encode(picture).latent_dist.sample(), pixels)
        return pack((latents - vae.config.shift_factor) * vae.config.scaling_factor)

    def each(self, encode: Callable[[torch.Tensor], torch.Tensor], given: torch.Tensor) -> torch.Tensor:
        return encode(given) if self.together else torch.cat([encode(one) for one in given.split(1)])


def pack(latents: torch.Tensor) -> torch.Tensor:
    return pixel_unshuffle(latents, 2).flatten(2).transpose(1, 2)


def turns(steps: Mapping[str, Callable[[], object]], count: int) -> dict[str, np.ndarray]:
    """CPU seconds of steps that take turns, each turn in another order; the first ones warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for _ in range(count + 3):
        names.append(names.pop(0))
        for name in names:
            started = time.process_time()
            steps[name]()
            seconds[name].append(time.process_time() - started)
    return {name: np.array(told[3:]) for name, told in seconds.items()}


def ratio_of(ours: np.ndarray, other: np.ndarray) -> str:
    """The median of the ratios of turns, and its interval."""
    ratio = np.log(ours / other)
    draws = np.random.default_rng(0).integers(0, len(ratio), (4000, len(ratio)))
    low, high = np.exp(np.percentile(np.median(ratio[draws], axis=1), [2.5, 97.5]))
    return f"{np.exp(np.median(ratio)):.3f}, 95 % interval {low:.3f} to {high:.3f}"


def begun(config: TrainConfig, folder: Path, name: str) -> Callable[[], None]:
    """A step of ours, which can be taken again and again."""
    trainer = Trainer(config, folder / "graph", folder / name, console=Console(file=io.StringIO()))
    trainer._begin()

    def step() -> None:
        trainer._step()
        trainer.step += 1

    step.trainer = trainer  # type: ignore[attr-defined]
    return step


def compare(count: int) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        config = prepare(folder)
        ours = begun(config, folder, "run")
        trainer = ours.trainer  # type: ignore[attr-defined]
        plain = {name: Plain(config, trainer, together=name == "together") for name in ("together", "one by one")}
        told = turns({"ours": ours, **{name: loop.step for name, loop in plain.items()}}, count)
        middle = {name: float(np.median(each)) for name, each in told.items()}
        print(
            f"{count} turns, CPU seconds (medians): {', '.join(f'{name} {each:.3f}' for name, each in middle.items())}"
        )
        for name in plain:
            print(f"ours to the plain loop that encodes {name}: {ratio_of(told['ours'], told[name])} (aim: below 1.02)")
            pair = {"ours": middle["ours"], "peer": middle[name]}
            record(f"a step, peer plain loop ({name})", **pair, unit="s", ratio=pair["peer"] / pair["ours"], limit=0.9)
        tiny_model = replace(config, model=str(tiny.save(folder / "smallest")), walks=8)
        cached = replace(tiny_model, cache_gb=1.0, text_cache_gb=1.0)
        told = turns({"as it is": begun(tiny_model, folder, "plain"), "cached": begun(cached, folder, "cached")}, count)
        print(f"cached latents and words: {ratio_of(told['as it is'], told['cached'])} times as fast (aim: above 1.2)")
        pair = {"ours": float(np.median(told["cached"])), "peer": float(np.median(told["as it is"]))}
        record("a cached step, peer without", **pair, unit="s", ratio=pair["peer"] / pair["ours"], limit=1.2)


def measure(rank: int, layers: Any, checkpointing: int, compile: bool) -> None:
    """Forward and backward passes of 3 x 4 cells of 384 px through a FLUX.1-Fill of the real size."""
    library: Any = diffusers
    tokens, words, device = 12 * 24 * 24, 512, torch.device("cuda")
    with torch.device("meta"):
        model = library.FluxTransformer2DModel(in_channels=384, out_channels=64, guidance_embeds=True)
    model = model.to(torch.bfloat16).to_empty(device=device).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.02)
    from graphbuild_train.bases.flux_fill import FluxFill

    ends = FluxFill.attention + (FluxFill.feed_forward if layers == "attn_ff" else ())
    linears = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    targets = [name for name in linears if layers == "all" or f".{name}".endswith(tuple(f".{end}" for end in ends))]
    add_lora(model, config_from({"lora": {"rank": rank, "layers": layers}}).lora, targets)
    autocast_only(model)
    sound_attention()
    spare(model, checkpointing)
    if compile:
        compiled(model, print)
    said = forecast(model, transformer_work(model, tokens, words), activations=0, checkpointing=checkpointing)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)
    shown = {
        "hidden_states": torch.randn(1, tokens, 384, device=device, dtype=torch.bfloat16),
        "encoder_hidden_states": torch.randn(1, words, 4096, device=device, dtype=torch.bfloat16),
        "pooled_projections": torch.randn(1, 768, device=device, dtype=torch.bfloat16),
        "timestep": torch.rand(1, device=device), "guidance": torch.ones(1, device=device),
        "img_ids": torch.rand(tokens, 3, device=device).mul(96).floor(),
        "txt_ids": torch.zeros(words, 3, device=device),
    }  # fmt: skip
    torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(8):
        torch.cuda.synchronize()
        started = time.perf_counter()
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(**shown, return_dict=False)[0].float().square().mean()
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    took, peak = float(np.median(seconds[3:])), peak_of(torch.cuda.get_device_name())
    speed = said.flops / took / 1e12
    share = f", MFU {speed / peak:.0%}" if peak else ""
    used = torch.cuda.max_memory_allocated()
    print(
        f"{layers} r={rank}, checkpointing {checkpointing}, compile {compile}: {took:.3f} s a step, {speed:.0f} TFLOP/s"
        f"{share}, {used / GIB:.1f} GiB, {(used - said.memory) / GIB:.1f} of them in a pass",
        flush=True,
    )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--pairs", type=int, default=40)
    options.add_argument("--gpu", action="store_true", help="FLUX.1's size on a GPU")
    given = options.parse_args()
    quiet_libraries()
    if not given.gpu:
        torch.set_num_threads(1)
        compare(given.pairs)
    elif not torch.cuda.is_available():
        print("not measured: no GPU")
    else:
        for rank, layers, checkpointing, compile in (
            (16, "attn", 0, False), (16, "attn", 1, False), (16, "attn", 0, True), (16, "attn", 1, True),
            (64, "attn_ff", 0, True),
        ):  # fmt: skip
            measure(rank, layers, checkpointing, compile)
            gc.collect()  # a model of the last round may hang in cycles
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()

"""Preflight summary: what is trained, what it takes, and what the data can serve."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from rich.table import Table
from torch import nn

from graphbuild.store.graph import Graph
from graphbuild.tasks.config import Split
from graphbuild.tasks.mixture import Sampler, TaskMixture
from graphbuild.tasks.paths import PathSet, Places
from graphbuild.tasks.sampler import PathSampler
from graphbuild_train import optimiser, quantise, trackers
from graphbuild_train.bases import base_class, plan_base
from graphbuild_train.bases.base import Base
from graphbuild_train.batch import LatentBatch
from graphbuild_train.config import TrainConfig
from graphbuild_train.forecast import GIB, MARGIN, Copies, Forecast, forecast, frozen_bytes, peak_of
from graphbuild_train.lora import LoraCount, add_lora
from graphbuild_train.memory import peak_bytes
from graphbuild_train.model_setup import spare
from graphbuild_train.objective import objective_for

AUTO = (0, 4, 2, 1)
"""What `checkpointing: auto` tries, by how much it keeps."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """A run that is ready to start."""

    config: TrainConfig
    base: Base
    """On the meta device, with the LoRA in it."""
    sampler: Sampler
    model: str
    """The checkpoint of the base."""
    lora: str
    """Its size in words."""
    processes: int
    passes: int
    """Forward passes of each process in a step."""


def lines(setup: Setup) -> Iterator[str | Table]:
    """Lines and tables to print before training."""
    config = setup.config
    yield f"{config.base} {setup.model}, {config.objective}, LoRA {config.lora.where} r={config.lora.rank}"
    yield f"LoRA: {setup.lora}"
    rows, columns = largest_grid(setup.sampler)
    largest = pass_of(setup.config, setup.base, rows, columns, setup.processes)
    said = largest or f"memory and work unknown for base {config.base}"
    yield f"largest pass, {config.micro_batch} x {rows * columns} cells: {said}"
    shared = f" on each of {setup.processes} processes" if setup.processes > 1 else ""
    mixed = "each of its own path and rows" if config.mix == "pass" else "all of one path and number of rows"
    yield f"a step: {setup.passes} such passes{shared}, {mixed}" + (f"; {_time(setup, largest)}" if largest else "")
    free = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else math.inf
    if largest and largest.memory > free:
        yield f"that is more than the {free / GIB:.0f} GiB free on this GPU: {advice(config)}"
    if config.cache_gb:
        size = cache_bytes(setup)
        fits = "all" if size <= config.cache_gb * 1e9 else f"{config.cache_gb * 1e9 / size:.0%} of them"
        yield f"VAE cache: at most {size / 1e9:.2f} GB for {config.walks} grid tasks; cache_gb holds {fits}"
    if config.text_cache_gb and (each := text_bytes(config, setup.base)):
        count = config.walks or config.steps * config.batch
        yield (
            f"text cache: at most {each * count / 1e9:.2f} GB, {each / 1e6:.1f} MB for each of {count:,} instructions "
            f"that differ; text_cache_gb: {config.text_cache_gb}"
        )
    chances = setup.sampler.chances.tolist() if isinstance(setup.sampler, TaskMixture) else [1.0]
    for part, chance in zip(setup.sampler.parts, chances, strict=True):
        if chance < 1:
            yield f"{chance:.1%} of the grid tasks: {part.listed.name} on {part.graph.url}"
        if said := _examples(part):
            yield said
        yield coverage(part)


def check(config: TrainConfig) -> None:
    """Refuse, before a model is loaded, what its base could not train or sample.

    Raises:
        ValueError: a field and its value, and what is allowed.
    """
    base_class(config.base).check(config)
    objective_for(config)
    trackers.check(config.watch.loggers)
    quantise.check(config.quantise)
    optimiser.check(config.optimiser)


def sampler_of(
    config: TrainConfig, graphs: Sequence[Graph], lists: Sequence[PathSet], *, split: Split | None,
    path_repeat: int = 1, seed: int | None = None,
) -> Sampler:  # fmt: skip
    """What draws a recipe's grid tasks, of one side of the split.

    Args:
        graphs: one, or those of the recipe's data.
        lists: from `lists_of`.
        seed: instead of the recipe's.

    Raises:
        GraphError: nothing is served.
    """
    options: dict[str, Any] = {
        "seed": config.seed if seed is None else seed, "path_repeat": path_repeat, "on_missing": "drop",
        "config": replace(config.sampler, split=split),
    }  # fmt: skip
    if not config.data:
        return PathSampler(graphs[0], lists[0], **options)
    parts = zip(graphs, lists, config.data, strict=True)
    return TaskMixture([(graph, listed, entry.weight) for graph, listed, entry in parts], **options)


def planned(config: TrainConfig, model: str) -> tuple[Base, LoraCount]:
    """The base of a recipe with its LoRA on the meta device: sizes and work, before anything is loaded.

    Raises:
        ValueError: there is no such checkpoint, or the recipe does not fit it.
    """
    dtype = getattr(torch, config.dtype)
    base = plan_base(config.base, model, objective_for(config), dtype=dtype, revision=config.revision)
    with torch.device("meta"):
        count = add_lora(
            base.bare, replace(config.lora, init="zero"), base.targets(config.lora.layers), seed=config.seed
        )
    nn.Module.to(base.bare, dtype)  # as autocast has it in a pass
    return base, count


def pass_of(config: TrainConfig, base: Base, rows: int, columns: int, processes: int = 1) -> Forecast | None:
    """Memory and work of a forward and backward pass over grids of this shape.

    Args:
        base: from `planned`.

    Returns:
        None if the base does not know its inputs or its work.
    """
    batch = base.blank(rows, columns, config.resolution, config.micro_batch)
    if batch is None:
        return None
    said = batch.text["prompt_embeds"].shape[1] if "prompt_embeds" in batch.text else base.text_tokens
    if (work := base.work(batch.z.shape[1], said)) is None:
        return None
    assert config.checkpointing != "auto"
    spare(base.bare, config.checkpointing)
    height, width = base.unit(rows, columns, config.resolution)
    vae = base.pipe.vae
    picture = torch.zeros(1, 3, height, width, device="meta", dtype=vae.dtype)
    return forecast(
        base.bare, work, batch=config.micro_batch, checkpointing=config.checkpointing,
        activations=peak_bytes(lambda: rehearse(base, batch), [*base.bare.parameters(), batch.z]),
        encoding=peak_bytes(torch.no_grad()(lambda: base.encoding(picture)), vae.parameters()),
        others=_beside(config, base), quantise=config.quantise, shards=processes if config.shard else 1,
        copies=Copies(
            low=config.dtype != "float32", moments=optimiser.moments(config.optimiser), buckets=processes > 1,
            average=bool(config.optimiser.ema),
        ),
    )  # fmt: skip


def _beside(config: TrainConfig, base: Base) -> int:
    """Bytes on the GPU of the VAE and, unless they are in main memory, of text encoders."""
    size = 0
    for name, module in base.pipe.components.items():
        if isinstance(module, nn.Module) and module is not base.bare:
            on_gpu = config.text == "device" or not name.startswith("text_encoder")
            size += on_gpu * frozen_bytes(module, config.quantise if name in base.large_encoders else "none")
    return size


def settled(config: TrainConfig, base: Base, rows: int, columns: int, processes: int) -> TrainConfig:
    """The recipe with `checkpointing: auto` replaced by what the free memory of this GPU allows.

    Args:
        base: from `planned`.
    """
    if config.checkpointing != "auto":
        return config
    free = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else math.inf
    for every in AUTO:
        tried = replace(config, checkpointing=every)
        made = pass_of(tried, base, rows, columns, processes)
        if made is not None and made.memory * MARGIN <= free:
            break
    return tried


def rehearse(base: Base, batch: LatentBatch) -> None:
    """A forward and backward pass over a batch whose values do not matter; the gradients are dropped."""
    level = torch.full(batch.z.shape[:2], 0.5, device=batch.z.device)
    base.predict(batch.z, level, batch).square().mean().backward()  # type: ignore[no-untyped-call]
    base.bare.zero_grad(set_to_none=True)


def advice(config: TrainConfig) -> str:
    """What to change where memory does not suffice."""
    changes = [
        f"micro_batch: {config.micro_batch // 2}" if config.micro_batch > 1 else "",
        "checkpointing: 1" if config.checkpointing != 1 else "",
        "quantise: int8 or nf4" if config.quantise == "none" else "",
        "text: cpu" if config.text == "device" else "",
        f"lora.rank: {config.lora.rank // 2}" if config.lora.rank > 16 else "",
        "lora.layers: attn" if config.lora.layers != "attn" else "",
        "fewer sampler.rows" if len(config.sampler.rows) > 1 else "",
        "a smaller resolution",
    ]
    return "try " + ", ".join(change for change in changes if change)


@contextmanager
def within_memory(config: TrainConfig, doing: str) -> Iterator[None]:
    """A GPU whose memory does not suffice is one line that says what to change.

    Args:
        doing: what the memory is used for.

    Raises:
        MemoryError: that line.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise MemoryError(f"{doing}: out of GPU memory; {advice(config)}") from error


def cache_bytes(setup: Setup) -> int:
    """What the cache would need for all walks, if no two showed the same picture."""
    vae = setup.base.pipe.vae
    walks = setup.sampler.walks(0, setup.config.walks)
    shapes = Counter((len(walk.rows), len(walk.columns)) for walk in walks)
    pixels = sum(n * _encoded_pixels(setup.base, *shape, setup.config.resolution) for shape, n in shapes.items())
    weight = next(iter(vae.state_dict().values()))
    return int(pixels // 64 * 2 * setup.base.latent_channels * weight.element_size())


def _encoded_pixels(base: Base, rows: int, columns: int, side: int) -> int:
    """Of all that the VAE encodes of a grid of square cells, with one hole."""
    height, width = base.unit(rows, columns, side)
    return height * width * len(base.units([""] * rows, [[""] * columns] * rows, [columns - 1]))


def text_bytes(config: TrainConfig, base: Base) -> int:
    """Bytes of the cached embeddings of one instruction; 0 if they are not known."""
    batch = base.blank(1, 1, config.resolution, 1)
    return sum(value.nbytes for value in batch.text.values()) if batch else 0


def coverage(sampler: PathSampler) -> Table:
    """For each task type: its paths, how many of them the graph serves, with how many items, and its chance."""
    table = Table("task type", "paths", "served", "items", "chance", box=None, pad_edge=False)
    counts, listed, chances = sampler.coverage(), sampler.listed, sampler.probabilities()
    for kind in dict.fromkeys(path.type for path in listed.paths):
        names = [path.name for path in listed.paths if path.type == kind]
        served = [name for name in names if name in chances]
        items = [counts[name]["all"] for name in served]
        few = f"{min(items)}..{max(items)}" if items else "0"
        table.add_row(kind, str(len(names)), str(len(served)), few, f"{sum(chances[name] for name in served):.3f}")
    return table


def _time(setup: Setup, largest: Forecast) -> str:
    work = setup.passes * (largest.flops + largest.recomputed) / 1e12
    peak = peak_of(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
    if peak is None:
        return f"{work:.3g} TFLOP at most, the device's speed is not known"
    seconds = setup.passes * largest.seconds(peak)
    return f"{work:.3g} TFLOP at most, {seconds:.1f} s at 45 % of {peak} TFLOP/s"


def largest_grid(sampler: Sampler) -> tuple[int, int]:
    """Lines and columns of the largest grid that can be drawn, as it is shown."""
    drawn = [(part.most_rows(), path) for part in sampler.parts for path in part.paths]
    return largest([path.places(rows[path.name]) for rows, path in drawn])


def largest(shown: Iterable[Places]) -> tuple[int, int]:
    """Lines and columns of the largest of some grids."""
    return max(((len(lines), len(lines[0])) for lines in shown), key=lambda shape: shape[0] * shape[1])


def _examples(sampler: PathSampler) -> str:
    """A warning about paths whose grids have no example rows, though the recipe asks for some."""
    rows = sampler.most_rows()
    alone = [name for name, most in rows.items() if most == 1]
    if not alone or not any(sampler.config.rows[1:]):
        return ""
    some = f"{', '.join(alone[:3])}{', ...' if len(alone) > 3 else ''}"
    return (
        f"no examples: {len(alone)} of {len(rows)} paths ({some}) are served by one item, or by items related to each "
        "other, so that their grids have one row"
    )

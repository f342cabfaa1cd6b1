"""Preflight summary: what is trained, what it takes, and what the data can serve."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from rich.table import Table

from graphbuild.tasks.sampler import PathSampler
from graphbuild_train.bases import base_class
from graphbuild_train.bases.base import Base
from graphbuild_train.config import TrainConfig
from graphbuild_train.forecast import GIB, Forecast, forecast, peak_of


@dataclass(frozen=True, kw_only=True)
class Setup:
    """A run that is ready to start."""

    config: TrainConfig
    base: Base
    """With the LoRA in it."""
    sampler: PathSampler
    model: str
    """The checkpoint of the base."""
    lora: str
    """Its size in words."""
    processes: int
    passes: int
    """Forward passes of each process in a step."""


def lines(setup: Setup) -> Iterator[str | Table]:
    """Lines and tables to print before training."""
    config, cells = setup.config, _most_cells(setup.sampler)
    yield f"{config.base} {setup.model}, {config.objective}, LoRA {config.lora.layers} r={config.lora.rank}"
    yield f"LoRA: {setup.lora}"
    largest = pass_of(setup, cells * (config.resolution // setup.base.token) ** 2)
    said = largest or f"memory and work unknown for base {config.base}"
    yield f"largest pass, {config.micro_batch} x {cells} cells: {said}"
    shared = f" on each of {setup.processes} processes" if setup.processes > 1 else ""
    mixed = "each of its own path and rows" if config.mix == "pass" else "all of one path and number of rows"
    yield f"a step: {setup.passes} such passes{shared}, {mixed}" + (f"; {_time(setup, largest)}" if largest else "")
    free = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else math.inf
    if largest and largest.memory > (free := free + largest.base):
        yield (
            f"that is more than the {free / GIB:.0f} GiB of this GPU: set checkpointing: 1, a smaller micro_batch or "
            "resolution, or fewer layers"
        )
    if config.cache_gb:
        size = cache_bytes(setup)
        fits = "all" if size <= config.cache_gb * 1e9 else f"{config.cache_gb * 1e9 / size:.0%} of them"
        yield f"VAE cache: at most {size / 1e9:.2f} GB for {config.walks} grid tasks; cache_gb holds {fits}"
    if said := _examples(setup.sampler):
        yield said
    yield coverage(setup.sampler)


def check(config: TrainConfig) -> None:
    """Refuse, before a model is loaded, what its base could not train or sample.

    Raises:
        ValueError: a field and its value, and what is allowed.
    """
    base_class(config.base).check(config)


def pass_of(setup: Setup, image_tokens: int) -> Forecast | None:
    """Memory and work of a forward and backward pass over grid tasks of so many tokens; None if the base does not know
    its work."""
    config, base = setup.config, setup.base
    if (work := base.work(image_tokens, base.text_tokens)) is None:
        return None
    modules = [module for module in base.pipe.components.values() if isinstance(module, torch.nn.Module)]
    others = [parameter for module in modules if module is not base.bare for parameter in module.parameters()]
    return forecast(
        base.bare,
        config.lora.layers,
        work,
        batch=config.micro_batch,
        checkpointing=config.checkpointing,
        others=sum(parameter.nbytes for parameter in others),
    )


def cache_bytes(setup: Setup) -> int:
    """What the cache would need for all walks, if no two showed the same picture."""
    vae = setup.base.pipe.vae
    elements = 2 * vae.config.latent_channels * (setup.config.resolution // 8) ** 2
    walks = setup.sampler.walks(0, setup.config.walks)
    columns = np.array([len(path.cells) for path in walks.paths])[walks.path]
    # A base that is shown holes encodes the last row twice, with and without what is in them.
    cells, weight = int(((walks.count + 1) * columns).sum()), next(iter(vae.state_dict().values()))
    return int(cells * elements * weight.element_size())


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


def _most_cells(sampler: PathSampler) -> int:
    """Cells of the largest grid that can be drawn."""
    rows = sampler.most_rows()
    return max(rows[path.name] * len(path.cells) for path in sampler.paths)


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

"""What a recipe takes on a GPU, before there is a graph: which cards hold it, and how long a step is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from rich.table import Table

from graphbuild_train.config import TrainConfig
from graphbuild_train.forecast import GIB, MARGIN, Forecast
from graphbuild_train.preflight import AUTO, advice, largest, pass_of, planned, text_bytes
from graphbuild_train.task_list import lists_of

CARDS = {16: (15.6, 97), 24: (23.5, 165), 40: (39.4, 312), 80: (79.1, 989), 141: (139.8, 989)}
"""GB on the box -> GiB that a process gets, and TFLOP/s of dense bfloat16 (RTX 4080, RTX 4090,
A100, H100, H200)."""


def fits(forecast: Forecast, card: int) -> bool:
    """Whether a pass fits a card, with a margin."""
    return forecast.memory * MARGIN <= CARDS[card][0] * GIB


def smallest(forecast: Forecast) -> int | None:
    """The smallest card that a pass fits; None if it fits none."""
    return next((card for card in sorted(CARDS) if fits(forecast, card)), None)


def lines(config: TrainConfig, model: str, card: int) -> Iterator[str | Table]:
    """A table of the recipe's largest pass, with blocks kept and computed again, and the bytes of a cached task.

    Args:
        model: the checkpoint, of which only configs are read.
        card: one of `CARDS`.

    Raises:
        ValueError: another card; no such model or task list.
    """
    if card not in CARDS:
        raise ValueError(f"card: {card}; allowed: {', '.join(map(str, CARDS))}")
    base, count = planned(config, model)
    rows, columns = grid_of(config)
    yield f"{config.base} {model}, LoRA {config.lora.where} r={config.lora.rank}: {count}"
    yield f"largest pass: {config.micro_batch} x {rows} x {columns} cells of {config.resolution} px"
    table = Table("checkpointing", "GiB", "base", "encoders, VAE", "LoRA", "pass", f"fits {card} GB", "s a step")
    table.box, table.pad_edge = None, False
    passes = config.batch // config.micro_batch
    found = {}
    for every in AUTO if config.checkpointing == "auto" else sorted({0, 1, config.checkpointing}):
        made = found[every] = pass_of(replace(config, checkpointing=every), base, rows, columns)
        if made is None:
            yield f"memory and work unknown for base {config.base}"
            return
        sizes = [made.memory, made.base, made.others, made.lora, made.activations]
        table.add_row(
            str(every), *(f"{size / GIB:.1f}" for size in sizes), "yes" if fits(made, card) else "no",
            f"{passes * made.seconds(CARDS[card][1]):.1f}",
        )  # fmt: skip
    yield table
    for every, made in found.items():
        size = smallest(made) if made else None
        yield f"smallest card with checkpointing: {every}: {f'{size} GB' if size else 'none of ' + _names()}"
    if not any(made and fits(made, card) for made in found.values()):
        yield f"nothing fits: {advice(replace(config, checkpointing=1))}"
    vae = base.pipe.vae
    elements = 2 * vae.config.latent_channels * (config.resolution // 8) ** 2
    size = (rows + 1) * columns * elements * vae.dtype.itemsize
    yield f"cached VAE posteriors: {size / 1e6:.1f} MB a grid task at most"
    most = config.walks or config.steps * config.batch
    if said := text_bytes(config, base):
        yield f"cached text: {said / 1e6:.1f} MB an instruction, {said * most / 1e9:,.1f} GB if all {most:,} differ"


def grid_of(config: TrainConfig) -> tuple[int, int]:
    """Lines and columns of the largest grid that a recipe asks for."""
    rows = max(number for number, chance in enumerate(config.sampler.rows, start=1) if chance)
    lists = (listed.paths for listed in lists_of(config))
    return largest(path.places(path.views[1] if path.views else rows) for paths in lists for path in paths)


def _names() -> str:
    return ", ".join(map(str, CARDS))

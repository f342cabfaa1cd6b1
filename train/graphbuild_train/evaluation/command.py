"""What `graphbuild-train evaluate` does: walks, pictures, figures, and the three forms of the report."""

from __future__ import annotations

import json
from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from rich.console import Console

from graphbuild.errors import GraphError, counted
from graphbuild.hashing import canonical_json
from graphbuild.store.files import file_checksum, replacing
from graphbuild.tasks.paths import PathSet
from graphbuild.tasks.walk import Frozen
from graphbuild_train.config import TrainConfig
from graphbuild_train.evaluation.judge import Judge
from graphbuild_train.evaluation.methods import BASELINES, NEED_A_LORA, PEERS, Method, check, methods
from graphbuild_train.evaluation.page import page
from graphbuild_train.evaluation.peers import OMNIGEN, STEPS, OmniGen
from graphbuild_train.evaluation.run import Evaluation, document_of
from graphbuild_train.evaluation.tables import report
from graphbuild_train.evaluation.walks import Questions, drawn, questions
from graphbuild_train.metrics.control import READ_AGAIN, Controls
from graphbuild_train.plan import accelerator_here
from graphbuild_train.sampling import LoraSampler

WALKS, ASKED = "walks.jsonl", "asked.json"
_NONE = "none"
_MOST = 10  # names in a note


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the command line asks for; see its help.

    Attributes:
        weights: network or condition -> a folder, file or hub repository.
        baselines: None for all that there can be.
    """

    graph: str
    context: tuple[int, ...] = (0, 1, 2)
    count: int = 16
    walks: Path | None = None
    metrics: tuple[str, ...] = ()
    weights: Mapping[str, str]
    baselines: Sequence[str] | None = None
    seed: int = 0

    def chosen(self, *, lora: bool) -> list[str]:
        """The baselines."""
        if self.baselines is None:
            return [name for name in BASELINES if lora or name not in NEED_A_LORA]
        return [name for name in self.baselines if name != _NONE]


def evaluated(
    asked: Asked, sampler: LoraSampler | None, config: TrainConfig, lists: Sequence[PathSet], out: Path, *,
    console: Console,
) -> Path | None:  # fmt: skip
    """Evaluate a LoRA and baselines; stopped, the same call goes on.

    Args:
        sampler: the LoRA; None for baselines alone.
        lists: the task lists that it was trained on.

    Returns:
        the report, Markdown; None in all processes but the main one.

    Raises:
        GraphError, ValueError: what was asked for cannot be; `out` is left as it was.
    """
    baselines, listed = asked.chosen(lora=sampler is not None), _list(lists)
    conditions = {name: place for name, place in asked.weights.items() if name in READ_AGAIN}
    others = {name: place for name, place in asked.weights.items() if name not in (*READ_AGAIN, *PEERS)}
    check(baselines, lora=sampler is not None)
    accelerator = accelerator_here()
    judge = Judge(asked.metrics, others, accelerator.device.type)
    peers = _peers(asked, baselines, config, accelerator.device)
    with accelerator.main_process_first():
        _begin(asked, sampler, config, listed, out)
    found = questions(asked.graph, listed, config, out / WALKS)
    controls = Controls(found.sampler.graph, accelerator.device.type, conditions)
    filling = methods(found, sampler, baselines, asked.seed, peers)
    share = int(accelerator.process_index), int(accelerator.num_processes)
    evaluation = Evaluation(out, found, filling, judge=judge, controls=controls, contexts=asked.context, share=share)
    _fill(evaluation, console, accelerator)
    again = {f"{kind}, made again": why for kind, why in controls.left_out.items()}
    unfilled = dict(sorted(ChainMap(*gather_object([evaluation.left_out])).items()))
    if accelerator.is_main_process:
        _write(evaluation, {**judge.left_out, **again, **unfilled, **_lacking(found, listed)})
    accelerator.wait_for_everyone()
    return out / "report.md" if accelerator.is_main_process else None


def _peers(asked: Asked, baselines: Sequence[str], config: TrainConfig, device: Any) -> dict[str, Method]:
    """The other models that are asked for, loaded."""
    if "omnigen" not in baselines:
        return {}
    checkpoint = OMNIGEN.at(asked.weights.get("omnigen", OMNIGEN.model))
    return {"omnigen": OmniGen.load(checkpoint, device, config.watch.sample_steps or STEPS, asked.seed)}


def _list(lists: Sequence[PathSet]) -> PathSet:
    if len(lists) > 1:
        names = ", ".join(each.name for each in lists)
        raise GraphError(f"it was trained on several lists ({names}); say which: --set data=[] --set paths=LIST")
    return lists[0]


def _begin(asked: Asked, sampler: LoraSampler | None, config: TrainConfig, listed: PathSet, out: Path) -> None:
    """The walks of a new folder, or a refusal of another evaluation's.

    Raises:
        GraphError: the folder has an evaluation of something else.
    """
    told = _told(asked, sampler, config, listed)
    try:
        before = (out / ASKED).read_text()
    except FileNotFoundError:
        before = ""
    if before:
        if before != told:
            raise GraphError(f"{out}: holds an evaluation of something else, see {out / ASKED}; choose another --out")
        return
    options: dict[str, Any] = {"count": asked.count, "context": max(asked.context), "seed": asked.seed}
    frozen = Frozen.read(asked.walks) if asked.walks else drawn(asked.graph, listed, config, **options)
    out.mkdir(parents=True, exist_ok=True)
    frozen.write(out / WALKS)
    with replacing(out / ASKED) as file:
        file.write(told.encode())


def _told(asked: Asked, sampler: LoraSampler | None, config: TrainConfig, listed: PathSet) -> str:
    """What pictures depend on, but for baselines and metrics, which may be added later."""
    return canonical_json(
        {
            "lora": file_checksum(str(sampler.file)) if sampler else None,
            "model": config.model,
            "paths": listed.digest,
            "count": None if asked.walks else asked.count,
            "walks": Frozen.read(asked.walks).digest if asked.walks else None,
            "context": max(asked.context),
            "resolution": config.resolution,
            "cells": asdict(config.cells),
            "dtype": [config.dtype, config.quantise],
            "steps": [config.watch.sample_steps, config.watch.sample_guidance],
            "seed": asked.seed,
        }
    )


def _fill(evaluation: Evaluation, console: Console, accelerator: Accelerator) -> None:
    from rich.progress import Progress

    total = len(evaluation.methods) * len(evaluation.contexts) * len(evaluation.questions.walks)
    quiet = not (console.is_terminal and accelerator.is_main_process)
    with Progress(console=console, transient=True, disable=quiet) as bar:
        task = bar.add_task("walks", total=total // accelerator.num_processes)
        evaluation.run(lambda _: bar.advance(task))
    accelerator.wait_for_everyone()


def _lacking(found: Questions, listed: PathSet) -> dict[str, str]:
    """The tasks of the list without walks."""
    served = {walk.path.name for walk in found.walks}
    names = [path.name for path in listed.paths if path.name not in served]
    few = ", ".join(names[:_MOST]) + (", ..." if names[_MOST:] else "")
    return {f"{counted(len(names), 'task')} of the list without a walk": few} if names else {}


def _write(evaluation: Evaluation, left_out: Mapping[str, str]) -> None:
    figures, snapshot = evaluation.figures(), evaluation.questions.sampler.snapshot
    walks = Frozen.read(evaluation.out / WALKS).digest
    facts = {"snapshot": snapshot, "walks": walks, "metrics": evaluation.judge.identity}
    whole = {
        "report.json": json.dumps(document_of(figures, left_out, facts), indent=1),
        "report.html": page(evaluation, figures, left_out),
        "report.md": report(figures, left_out),
    }
    for name, text in whole.items():
        with replacing(evaluation.out / name) as file:
            file.write(f"{text.rstrip()}\n".encode())

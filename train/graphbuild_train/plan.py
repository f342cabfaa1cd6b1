"""A run before its model is loaded: what it would resume from, train on and take."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.utils import gather_object
from rich.console import Console

from graphbuild.errors import GraphError, counted
from graphbuild.store.graph import Graph
from graphbuild.tasks.config import Split
from graphbuild.tasks.mixture import Sampler, TaskMixture
from graphbuild_train import checkpoint, preflight, resume
from graphbuild_train.bases import base_class, tiny
from graphbuild_train.config import TrainConfig
from graphbuild_train.journal import Journal
from graphbuild_train.objective import objective_for
from graphbuild_train.preflight import Setup
from graphbuild_train.task_list import lists_of


class Plan:
    """A run's newest checkpoint if it has one, else its beginning; no model is loaded for it.

    Raises:
        GraphError, ValueError: what was asked for cannot be trained; nothing was changed.
    """

    def __init__(
        self, config: TrainConfig, graph: str | os.PathLike[str] | None, out: Path, *, console: Console | None = None,
        accelerator: Accelerator | None = None,
    ) -> None:  # fmt: skip
        self.config, self.out = config, out
        self.accelerator = accelerator or accelerator_here()
        self.main, self.world = self.accelerator.is_main_process, self.accelerator.num_processes
        self.sharded = config.shard and self.world > 1
        self.passes = self._shared_out()
        self.restored = checkpoint.latest(out)
        self.step = self.restored.step if self.restored else 0
        self.graphs = self._opened(graph)
        self.lists = lists_of(config)
        self.sampler = self.sampler_of(config.sampler.split, path_repeat=config.path_repeat)
        if isinstance(self.sampler, TaskMixture) and self.sampler.lacking:
            raise GraphError("; ".join(self.sampler.lacking))
        if self.restored:
            resume.check_config(out, self.restored.config, self.document())
        resume.check_processes(out, gather_object([resume.place(self.step, self.sampler.snapshot, self.document())]))
        preflight.check(config)
        with self.accelerator.main_process_first():
            self.model_name = tiny.made(config.model or base_class(config.base).checkpoint, config.base, out)
        self.objective = objective_for(config)
        shown = (console or Console(stderr=True)) if self.main else Console(quiet=True)
        self.journal = Journal(out, shown, first=self.step, last=config.steps, loggers=config.watch.loggers)

    @property
    def dtype(self) -> torch.dtype:
        """Of the frozen base and of activations."""
        return torch.float32 if self.config.dtype == "float32" else torch.bfloat16

    @cached_property
    def setup(self) -> Setup:
        """The model on the meta device, and what it is trained on."""
        base, count = preflight.planned(self.config, self.model_name)
        config = preflight.settled(self.config, base, *preflight.largest_grid(self.sampler), self.world)
        return Setup(
            config=config, base=base, sampler=self.sampler, model=self.model_name, lora=str(count),
            processes=int(self.world), passes=self.passes,
        )  # fmt: skip

    def sampler_of(self, split: Split | None, path_repeat: int) -> Sampler:
        """Grid tasks of one side of the split."""
        return preflight.sampler_of(self.config, self.graphs, self.lists, split=split, path_repeat=path_repeat)

    def document(self) -> dict[str, Any]:
        """The config as JSON values; task lists by name and digest, not by their paths, and no places of graphs."""
        document: dict[str, Any] = json.loads(json.dumps(asdict(self.config)))
        lists = [f"{part.listed.name} {part.listed.digest}" for part in self.sampler.parts]
        if not document.pop("data"):
            return document | {"paths": lists[0]}
        weights = [entry.weight for entry in self.config.data]
        return document | {"paths": None, "data": [list(entry) for entry in zip(lists, weights, strict=True)]}

    def _opened(self, graph: str | os.PathLike[str] | None) -> list[Graph]:
        """The graph, or those of the recipe's `data`, at the snapshots of the checkpoint if there is one."""
        if (graph is None) == (not self.config.data):
            raise GraphError("name either one graph with --graph, or several in the recipe's data")
        places = [entry.graph for entry in self.config.data] if graph is None else [graph]
        digests: list[str | None] = [*self.restored.snapshot.split("+")] if self.restored else [None] * len(places)
        if len(digests) != len(places):
            had = counted(len(digests), "graph")
            raise GraphError(f"{self.out} was trained with {had}, not with {len(places)}; choose another --out")
        return [Graph.open(place, snapshot=digest) for place, digest in zip(places, digests, strict=True)]

    def _shared_out(self) -> int:
        """Forward passes of each process for one step."""
        config = self.config
        together = int(self.world) * config.micro_batch
        if config.batch % together:
            raise GraphError(
                f"batch: {config.batch}; allowed for {self.world} processes with micro_batch {config.micro_batch}: "
                f"a multiple of {together}"
            )
        return config.batch // together


def accelerator_here() -> Accelerator:
    """What `accelerate` makes of the processes that were launched; the loop casts for itself."""
    patience = InitProcessGroupKwargs(timeout=timedelta(hours=2))  # the others wait while one validates and samples
    return Accelerator(cpu=not torch.accelerator.is_available(), mixed_precision="no", kwargs_handlers=[patience])

"""The training loop: a graph's grid tasks through a frozen base into a LoRA, step by step, resumable after each.

One optimiser step takes `batch` grid tasks, whatever the number of processes and the size of a forward pass: each loss
is a mean over its own sample, each draw is counted by its walk, and a place in the data is one integer.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Generator, Iterator, Mapping, Set
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from graphbuild.data import GridBatch, GridTasks, collate
from graphbuild.errors import GraphError
from graphbuild.images.memory import keep_freed_memory
from graphbuild.store.pins import keep_snapshot
from graphbuild.tasks.mixture import Sampler
from graphbuild_train import checkpoint, lora, optimiser, pissa, preflight, resume
from graphbuild_train.bases import load_base
from graphbuild_train.caches import give_caches, say_ahead
from graphbuild_train.checkpoint import Checkpoint
from graphbuild_train.config import TrainConfig
from graphbuild_train.export.run import export_run, header_of_run
from graphbuild_train.forecast import flops_of
from graphbuild_train.initial import go_on_from
from graphbuild_train.journal import Step
from graphbuild_train.latent_cache import Known
from graphbuild_train.model_setup import autocast_only, compiled, forward_within, sound_attention, spare
from graphbuild_train.plan import Plan, accelerator_here
from graphbuild_train.sharding import average_gradients, shard
from graphbuild_train.validate import Validation, validate


def train(
    config: TrainConfig, graph: str | os.PathLike[str] | None, out: Path, *, console: Console | None = None
) -> Path:  # fmt: skip
    """Train until `config.steps`, from the newest whole checkpoint in `out` if there is one, and export.

    Run by `accelerate launch` or `torchrun` it uses all processes; `config.batch` is shared out among them.

    Returns:
        `out/pytorch_lora_weights.safetensors`, in diffusers' form.

    Raises:
        GraphError, ValueError: what was asked for cannot be trained; nothing was changed.
        FloatingPointError, MemoryError: it went wrong on the way; the checkpoints so far are kept.
        KeyboardInterrupt: it was stopped; the steps done are in a checkpoint.
    """
    accelerator = accelerator_here()
    with checkpoint.locked(out) if accelerator.is_main_process else nullcontext():
        trainer = Trainer(config, graph, out, console=console, accelerator=accelerator, announced=True)
        trainer.fit()
        return trainer.export()


class Trainer(Plan):
    """A run with its model. `fit` trains, `export` writes what users load.

    Args:
        announced: say what it takes before the model is loaded.
    """

    def __init__(
        self, config: TrainConfig, graph: str | os.PathLike[str] | None, out: Path, *, console: Console | None = None,
        accelerator: Accelerator | None = None, announced: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(config, graph, out, console=console, accelerator=accelerator)
        if announced:
            self.journal.say(preflight.lines(self.setup))
        with preflight.within_memory(config, "loading the model"):
            self.base = load_base(
                config.base, self.model_name, self.objective,
                device=self.accelerator.device, dtype=self.dtype, revision=config.revision,
                guidance=config.guidance, hole_fill=config.cells.hole_fill, quantise=config.quantise, text=config.text,
                shard=self.sharded,
            )  # fmt: skip
            saved, targets = self.restored.lora if self.restored else {}, self.base.targets(config.lora.layers)
            update, start = pissa.parts(saved) if config.lora.init == "pissa" else (saved, {})
            lora.add_lora(self.base.bare, config.lora, targets, seed=config.seed, start=start)
            self.start = lora.start_of(self.base.bare)
            if self.sharded:
                shard(self.base.bare, self.accelerator.device)
        self.lora = lora.lora_state(self.base.bare)
        self.ema = {name: value.clone() for name, value in self.lora.items()} if config.optimiser.ema else {}
        self.saved_average: Mapping[str, Tensor] = {}
        give_caches(self.base, config, self.out, int(self.world))
        self.told_cut = False
        self.whole = True
        """Whether parameters, optimiser and journal are those of `step`; not while a step updates them."""
        if self.restored:
            self._restore(update, self.restored)
        elif config.init:
            go_on_from(Path(config.init), self.base)
            self.ema = {name: value.clone() for name, value in self.lora.items()} if self.ema else {}

    @property
    def checkpointing(self) -> int:
        """Every how many blocks one is computed again; 0 is none."""
        every = self.config.checkpointing
        return int(self.setup.config.checkpointing if every == "auto" else every)

    @property
    def known(self) -> Known | None:
        """Tells loaders which pictures need no decoding, as their posteriors are cached."""
        kept = self.config.cache_gb or self.config.cache_disk_gb
        return Known(self.base.cache, self.base.units) if kept else None

    def _speak_ahead(self) -> None:
        """Encode the instructions of the whole run, each process its share."""
        config = self.config
        tasks = GridTasks(
            self.sampler, resolution=config.resolution, start=0 if config.walks else self.step * config.batch,
            stop=config.walks or config.steps * config.batch, batch=config.micro_batch,
            rank=self.accelerator.process_index, world=self.world, cells=config.cells,
        )  # fmt: skip
        say_ahead(self.base, (sample.prompt for sample in tasks), config)
        self.accelerator.wait_for_everyone()

    def _restore(self, update: Mapping[str, Tensor], saved: Checkpoint) -> None:
        lora.load_lora(self.base.bare, update)
        self.saved_average = pissa.parts(saved.ema)[0] if self.start else saved.ema
        self.ema = {name: self.saved_average[name].to(own.device) for name, own in self.ema.items()}
        checkpoint.set_rng_state(saved.rng)

    # ---- steps ---------------------------------------------------------------------------------------------------

    def fit(self) -> None:
        """Train until the last step; validate, sample and save on the way."""
        resume.check_steps(self.out, self.step, self.config.steps)
        self._begin()
        with self.journal, closing(self.grids), self._kept_when_stopped():
            if self.step == 0:
                self._watch()
            if self.accelerator.device.type == "cuda":
                self._rehearse()
            while self.step < self.config.steps:
                with preflight.within_memory(self.config, f"step {self.step + 1}"):
                    done = self._step()
                self.step += 1
                self.journal.step(self.step, done)
                self.whole = True
                self._tell_cut(first=True)
                self._watch()
            self._tell_cut()

    def _tell_cut(self, *, first: bool = False) -> None:
        """Say how many instructions were cut: at the first one, and after the last step."""
        base = self.base
        if base.cut and not (first and self.told_cut):
            self.told_cut = True
            self.journal.note(
                f"step {self.step}: {base.cut} of {base.texts} instructions are longer than the {base.text_tokens - 2} "
                "tokens that the text encoder reads; what comes after is cut"
            )

    @contextmanager
    def _kept_when_stopped(self) -> Iterator[None]:
        """Save the steps done when a signal stops the run."""
        try:
            yield
        except KeyboardInterrupt:
            if self.main and self.step and self.whole and self.step not in checkpoint.steps(self.out):
                self.save()
            raise

    def _rehearse(self) -> None:
        """One pass of the largest geometry, so that memory that does not suffice is noticed now and not in an hour."""
        rows, columns = preflight.largest_grid(self.sampler)
        batch = self.base.blank(rows, columns, self.config.resolution, self.config.micro_batch)
        if batch is not None:
            with preflight.within_memory(self.config, "the largest pass"), self.finished(), self.autocast():
                preflight.rehearse(self.base, batch)

    def _begin(self) -> None:
        """Prepare the model for training, its optimiser and its data."""
        config, model = self.config, self.base.bare
        sound_attention()
        keep_freed_memory()
        for graph in self.graphs if self.main and self.restored is None else ():
            if error := keep_snapshot(graph, "training"):
                raise GraphError(f"{graph.url}: its snapshot cannot be kept ({error}): no run could be resumed")
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimiser = optimiser.made(config.optimiser, self.parameters)
        if self.restored:
            self.optimiser.load_state_dict(dict(self.restored.optimiser))
            self.restored = replace(self.restored, optimiser={}, lora={}, ema={})  # its memory is wanted
        if self.dtype != torch.float32:
            autocast_only(model)
        spare(model, self.checkpointing)
        if config.compile:
            compiled(model, self.journal.note)
        if self.world > 1 and not self.sharded:
            # all have loaded the same frozen weights, and made the same LoRA
            self.base.model = DistributedDataParallel(model, init_sync=False, broadcast_buffers=False)
        if config.text == "ahead":
            self._speak_ahead()
        self.grids = self._grids(self.step * config.batch)
        self.work = cache(self._work)
        self.saved_at = time.monotonic()

    def _work(self, tokens: int) -> float:
        """FLOP of a forward and backward pass of one sample; 0 if unknown."""
        work = self.base.work(tokens, self.base.text_tokens)
        return sum(flops_of(self.base.bare, work)) if work else 0.0

    def _step(self) -> Step:
        """One optimiser step over `batch` grid tasks of all processes."""
        started, waited, work = time.perf_counter(), 0.0, 0.0
        total = torch.zeros((), device=self.accelerator.device)
        for number in range(1, self.passes + 1):
            asked = time.perf_counter()
            grid, seed = next(self.grids)
            waited += time.perf_counter() - asked
            parts = grid.alike() if self.config.cells.cell_fit == "aspect" else [grid]
            for part in parts:
                with self._together(last=number == self.passes and part is parts[-1]):
                    losses, tokens = self._losses(part, seed)
                    # Processes average their gradients, and each has its share of the batch.
                    (losses.sum() * self.world / self.config.batch).backward()
                total += losses.detach().sum()
                work += self.work(tokens) * len(losses)
        if self.sharded:
            average_gradients(self.parameters)
        loss = float(self.accelerator.reduce(total, "sum")) / self.config.batch
        norm, rate = self._update(loss)
        return Step(loss=loss, norm=norm, rate=rate, seconds=time.perf_counter() - started, waited=waited, work=work)

    def _losses(self, grid: GridBatch, seed: int) -> tuple[Tensor, int]:
        """The loss of each sample, and the number of image tokens of one."""
        batch = self.base.encode(grid, seed)
        noisy = self.objective.corrupt(batch, seed)
        with self.autocast():
            predicted = self.base.predict(noisy.x, noisy.level, batch)
        return self.objective.loss_of(predicted, noisy), batch.z.shape[1]

    def _update(self, loss: float) -> tuple[float, float]:
        """Move the parameters; the gradient's norm and the learning rate."""
        rates = self.config.optimiser
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, rates.clip or math.inf))
        if not math.isfinite(norm):
            raise FloatingPointError(f"step {self.step + 1}: loss {loss}, gradient {norm}; a smaller learning rate?")
        rate = self.optimiser.param_groups[0]["lr"] = rates.rate(self.step, self.config.steps)
        self.whole = False
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        if self.ema:  # early on the average follows faster
            decay = min(rates.ema, (1 + self.step) / (10 + self.step))
            torch._foreach_lerp_(list(self.ema.values()), list(self.lora.values()), 1 - decay)
        return norm, rate

    def autocast(self) -> AbstractContextManager[Any]:
        """Lets float32 LoRA weights meet bfloat16 activations; nothing for a float32 base."""
        return torch.autocast(self.accelerator.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def _together(self, *, last: bool) -> AbstractContextManager[Any]:
        """Gradients travel between processes once a step."""
        model = self.base.model
        return nullcontext() if last or not isinstance(model, DistributedDataParallel) else model.no_sync()

    def _grids(self, position: int) -> Generator[tuple[GridBatch, int], None, None]:
        """Micro batches of this process from a position on, without end, with the seed of their draws."""
        config, remote = self.config, any(graph.fs.remote for graph in self.graphs)
        while True:
            rounds, first = divmod(position, config.walks) if config.walks else (0, position)
            tasks = GridTasks(
                self.sampler, resolution=config.resolution, start=first, stop=config.walks or None,
                batch=config.micro_batch, rank=self.accelerator.process_index, world=self.world,
                cells=config.cells, known=self.known,
            )  # fmt: skip
            loader = DataLoader(
                tasks, batch_size=config.micro_batch, num_workers=config.workers, collate_fn=collate,
                pin_memory=self.accelerator.device.type == "cuda",
                multiprocessing_context="spawn" if config.workers and remote else None,
            )  # fmt: skip
            for grid in loader:
                yield grid, config.seed + (rounds << 32)  # another round over the same walks has other noise
            position = (rounds + 1) * config.walks

    # ---- on the way ----------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Validate, sample and save when it is time; one process does, the others wait or lend their part of the base.

        The checkpoint comes last, so that a step that a run resumes from is complete in the journal.
        """
        watch, last = self.config.watch, self.step == self.config.steps
        every = {"validate": watch.validate, "sample": watch.sample, "checkpoint": watch.checkpoint}
        due = {name for name, steps in every.items() if steps and (last or self.step % steps == 0)}
        due = due | {"checkpoint"} if last else due if self.step else due & {"validate"}
        if self.main or self.sharded:  # all are needed to put a shared-out base together
            self._report(due)
        if self.main and ("checkpoint" in due or self._overdue()):
            self.save()
        if due:
            self.accelerator.wait_for_everyone()

    def _overdue(self) -> bool:
        """Whether the last checkpoint is old; the other processes wait for the next gradient then."""
        minutes = self.config.watch.minutes
        return bool(minutes and self.step) and time.monotonic() - self.saved_at >= 60 * minutes

    def _report(self, due: Set[str]) -> None:
        if due & {"validate", "sample"}:
            with self.finished():
                if "validate" in due:
                    with preflight.within_memory(self.config, "validation"):
                        self.journal.validation(self.step, self.validation())
                if "sample" in due:
                    with preflight.within_memory(self.config, "sampling (watch.sample: 0 leaves it out)"):
                        self._sample()

    @property
    def average(self) -> Mapping[str, Tensor]:
        """What users get in place of the trained parameters: their moving average, or that of the optimiser; empty if
        they get the parameters themselves."""
        if self.ema or not hasattr(self, "optimiser"):
            return self.ema or self.saved_average
        return optimiser.averaged(self.optimiser, self.lora)

    @contextmanager
    def finished(self) -> Iterator[None]:
        """The model as it is exported, on one process alone: with the moving average of its LoRA if there is one."""
        wrapped, self.base.model = self.base.model, self.base.bare
        try:
            average = self.average
            with (
                lora.swapped(self.base.bare, average) if average else nullcontext(),
                forward_within(self.base.bare, self.autocast),
            ):
                yield
        finally:
            self.base.model = wrapped

    def save(self) -> Path:
        """Write a checkpoint of the steps done."""
        saved = Checkpoint(
            step=self.step, next=self.step * self.config.batch, seed=self.config.seed, config=self.document(),
            snapshot=self.sampler.snapshot, lora=pissa.difference(self.lora, self.start),
            ema=pissa.difference(self.average, self.start), optimiser=optimiser.state_of(self.optimiser),
            rng=checkpoint.rng_state(), part=self.base.denoiser,
            header=header_of_run(self.config, self.base, graphs=self.graphs, model=self.model_name, steps=self.step),
        )  # fmt: skip
        self.saved_at = time.monotonic()
        return checkpoint.save(self.out, saved, keep=self.config.watch.keep)

    def validation(self) -> Validation | None:
        """Losses of fixed grid tasks with fixed noise; None if no items are held out for it."""
        if self.spared is None:
            return None
        watch, config = self.config.watch, self.config
        tasks = GridTasks(
            self.spared, resolution=config.resolution, stop=watch.tasks, rank=0, world=1, cells=config.cells,
            known=self.known,
        )  # fmt: skip
        return validate(self.base, self.objective, DataLoader(tasks, collate_fn=collate), config.seed)

    @cached_property
    def spared(self) -> Sampler | None:
        """Sampler over the held-out items; over all items if none are held out."""
        try:
            return self.sampler_of("validation" if self.config.sampler.split == "train" else None, path_repeat=1)
        except GraphError as error:
            self.journal.note(f"no validation: {error}")
            return None

    def _sample(self) -> None:
        """Pictures made with the sampler that users have, of held-out items if there are any."""
        watch, config, sampler = self.config.watch, self.config, self.spared or self.sampler
        for index in range(watch.samples):
            task = sampler.task(index, config.resolution, cells=config.cells)
            (made,) = self.base.sample([task], seed=config.seed, **self.base.sampling(watch))
            if self.main:
                self.journal.pictures(self.step, task, made)

    # ---- after the last step -------------------------------------------------------------------------------------

    def export(self) -> Path:
        """Write the LoRA in diffusers' form with its recipe, and a model card."""
        if self.main:
            with self.finished():
                export_run(
                    self.out, self.config, self.base, graphs=self.graphs, model=self.model_name,
                    state=pissa.difference(self.lora, self.start), steps=self.step,
                )  # fmt: skip
        self.accelerator.wait_for_everyone()
        return self.out / "pytorch_lora_weights.safetensors"

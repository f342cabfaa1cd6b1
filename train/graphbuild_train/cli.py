"""`graphbuild-train`: the command line of the trainer."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from graphbuild.config.lookup import look_in
from graphbuild.errors import GraphError, MissingNode
from graphbuild.store.export.hub import check_push
from graphbuild.store.export.hub import push as upload
from graphbuild_train.config import TrainConfig
from graphbuild_train.recipes import SUFFIXES, configured, read_recipe, recipe_file

if TYPE_CHECKING:
    from graphbuild.tasks.grid import GridTask

app = typer.Typer(
    help="Train LoRAs on the grid tasks of a graph, for diffusers, ComfyUI and others.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
ERR = Console(stderr=True, soft_wrap=True, highlight=False)

UNDONE, REFUSED = 1, 2
_TALKATIVE = (
    "bitsandbytes.backends.cpu.ops",
    "diffusers.quantizers.torchao.torchao_quantizer",
    "torch.utils._pytree",
)
"""Loggers that warn of what quantisation could use while they are imported, also where nothing is quantised."""
NEEDED = ("torch", "diffusers", "transformers", "peft", "accelerate", "tensorboard")

RecipeArgument = Annotated[str, typer.Argument(help="A recipe: a .yaml file, or the name of a shipped one.")]
GraphOption = Annotated[
    str | None, typer.Option("--graph", help="The graph folder, unless the recipe's data names graphs.")
]
LoraArgument = Annotated[Path, typer.Argument(help="A run's folder, or a .safetensors in diffusers' form.")]
StepsOption = Annotated[int | None, typer.Option(min=1, help="Number of optimiser steps, instead of the recipe's.")]
ModelOption = Annotated[str | None, typer.Option(help="The base's checkpoint: a diffusers folder or hub id.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="Override a field, such as lora.rank=16. Can be repeated.")
]


def main() -> None:
    """Entry point. A first argument that ends in .yaml means `run`."""
    if len(sys.argv) > 1 and sys.argv[1].endswith(SUFFIXES):
        sys.argv.insert(1, "run")
    look_in(os.getcwd())
    app()


@contextmanager
def signals_raise() -> Iterator[list[int]]:
    """Ctrl-C, and SIGTERM from a cluster or torchrun, raise KeyboardInterrupt within. Yields the signals received."""
    received: list[int] = []

    def interrupt(number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_IGN)  # launchers send it twice, and a checkpoint is being saved
        received.append(number)
        raise KeyboardInterrupt

    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def refusing(out: Path | None = None) -> Iterator[None]:
    """Wrong usage and refused input end with one line and exit code 2, what went wrong on the way with 1, Ctrl-C with
    130 and SIGTERM with 143.

    Args:
        out: the run's folder, if the command trains: the message says where the same command would resume.
    """
    if absent := [name for name in NEEDED if find_spec(name) is None]:
        _stop(f"Python packages {', '.join(absent)} are missing: pip install 'graphbuild[train]'", REFUSED)
    try:
        with warnings.catch_warnings(), signals_raise() as received:
            for name in _TALKATIVE:
                logging.getLogger(name).setLevel(logging.ERROR)
            from graphbuild_train.journal import quiet_libraries

            quiet_libraries()
            warnings.showwarning = lambda message, *_: ERR.print(f"graphbuild-train: warning: {message}", markup=False)
            yield
    except (GraphError, MissingNode, ValueError) as error:
        _stop(str(error), REFUSED, error)
    except FileNotFoundError as error:
        _stop(f"{error.filename}: no such file or folder" if error.filename else str(error), REFUSED, error)
    except (FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError) as error:
        _stop(f"{error.filename}: {error.strerror}; give another name", REFUSED, error)
    except (OSError, FloatingPointError, MemoryError) as error:
        _stop(f"{error}{_resumes(out)}", UNDONE, error)
    except KeyboardInterrupt as error:
        _stop(f"stopped{_resumes(out)}", 128 + (received[0] if received else signal.SIGINT), error)


def _resumes(out: Path | None) -> str:
    """Where the same command resumes."""
    from graphbuild_train import checkpoint

    if out is None:
        return ""
    if not (steps := checkpoint.steps(out)):
        return "; there is no checkpoint yet, the same command starts at step 0"
    return f"; the same command resumes from the checkpoint of step {steps[-1]}"


def _stop(why: str, code: int, cause: BaseException | None = None) -> None:
    ERR.print(f"graphbuild-train: {why}", markup=False)
    raise typer.Exit(code) from cause


def config_of(recipe: str, steps: int | None, model: str | None, sets: list[str] | None) -> TrainConfig:
    """A recipe with the overrides of the command line.

    Raises:
        GraphError: an unknown field or a bad value; the message names the file.
    """
    file = recipe_file(recipe)
    said = read_recipe(file)
    try:
        return configured(said, [*(sets or []), *_sets(steps, model)])
    except ValueError as error:
        raise GraphError(f"{file}: {error}") from error


def _sets(steps: int | None, model: str | None) -> list[str]:
    given = {"steps": steps, "model": model}
    return [f"{name}={json.dumps(value)}" for name, value in given.items() if value is not None]


@app.command()
def run(
    recipe: RecipeArgument,
    graph: GraphOption = None,
    out: Annotated[Path, typer.Option(help="Folder of the run: checkpoints, metrics, samples, the LoRA.")] = Path(
        "lora"
    ),
    steps: StepsOption = None,
    model: ModelOption = None,
    sets: SetOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what it would take, and train nothing.")] = False,
    push: Annotated[
        str | None, typer.Option("--push", metavar="ORG/NAME", help="Then upload the LoRA and its card to the Hub.")
    ] = None,
) -> None:
    """Train a LoRA and export it. The same command resumes from the newest checkpoint.

    Examples:

      graphbuild-train run tiny --graph sample-graph --out tiny-lora

      graphbuild-train my.yaml --graph s200k-graph --out lora --set batch=32

      accelerate launch --num_processes 8 -m graphbuild_train run visualcloze_fill --graph s200k-graph --out lora
    """  # fmt: skip
    with refusing(None if dry_run else out):
        config = config_of(recipe, steps, model, sets)
        if dry_run:
            from graphbuild_train import checkpoint, preflight
            from graphbuild_train.plan import Plan

            with TemporaryDirectory() as scratch:  # for the tiny model
                plan = Plan(config, graph, out if checkpoint.steps(out) else Path(scratch), console=ERR)
                plan.journal.say(preflight.lines(plan.setup))
        else:
            from graphbuild_train.trainer import train

            if push is not None:
                check_push(push)
            file = train(config, graph, out, console=ERR)
            typer.echo(file)
            if push is not None and os.environ.get("RANK", "0") == "0":
                address = upload(out, push, "model", only=[file.name, "README.md"])
                ERR.print(f"pushed: {address}", markup=False)


@app.command()
def forecast(
    recipe: RecipeArgument,
    card: Annotated[int, typer.Option(help="Memory of the GPU in GB: 16, 24, 40, 80 or 141.")] = 80,
    model: ModelOption = None,
    sets: SetOption = None,
) -> None:
    """Print what a recipe takes on a GPU. No graph is needed, and of the model only its configs are read.

    Example:

      graphbuild-train forecast visualcloze_fill --card 80 --set lora.layers=attn
    """
    with refusing(), TemporaryDirectory() as scratch:
        config = config_of(recipe, None, model, sets)
        from graphbuild_train import cards, preflight
        from graphbuild_train.bases import base_class, tiny

        preflight.check(config)
        name = tiny.made(config.model or base_class(config.base).checkpoint, config.base, Path(scratch))
        out = Console(soft_wrap=True, highlight=False)
        for line in cards.lines(config, name, card):
            out.print(line, markup=False)


@app.command()
def validate(
    recipe: RecipeArgument,
    out: Annotated[Path, typer.Option(help="Folder of a run; its newest checkpoint is validated.")],
    graph: GraphOption = None,
    model: ModelOption = None,
    sets: SetOption = None,
) -> None:
    """Print the validation loss of a run's newest checkpoint as JSON: by noise level and by task type.

    Example:

      graphbuild-train validate tiny --graph sample-graph --out tiny-lora
    """
    with refusing():
        config = config_of(recipe, None, model, sets)
        from graphbuild_train import checkpoint
        from graphbuild_train.trainer import Trainer

        if not checkpoint.steps(out):  # a trainer would make the folder
            raise GraphError(f"{out}: no checkpoint of a run in it")
        trainer = Trainer(config, graph, out, console=ERR)
        with trainer.finished():
            result = trainer.validation()
        if result is None:
            raise GraphError(f"{graph or recipe}: no items to validate on; sampler.validation is their share")
        typer.echo(json.dumps({"step": trainer.step, **asdict(result)}))


@app.command()
def export(
    lora: Annotated[Path, typer.Argument(help="A run's folder, a .safetensors of diffusers, or VisualCloze's .pth.")],
    out: Annotated[Path, typer.Option(help="The file to write; for diffusers the folder.")],
    form: Annotated[
        str, typer.Option("--format", help="diffusers, kohya (ComfyUI), or module:function of your own.")
    ] = "diffusers",
    dtype: Annotated[str, typer.Option(help="float32 as trained, or bfloat16 or float16: half the size.")] = "float32",
) -> None:
    """Write a LoRA in another format. What the format cannot hold is refused.

    Examples:

      graphbuild-train export lora --format kohya --out lora-comfy.safetensors

      graphbuild-train export visualcloze-384-lora.pth --out lora-folder
    """
    with refusing():
        import torch

        from graphbuild_train.export import exporter_of
        from graphbuild_train.export.lora_file import read_diffusers
        from graphbuild_train.export.visualcloze import read_visualcloze

        if dtype not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"--dtype {dtype}; allowed: float32, bfloat16, float16")
        write = exporter_of(form)
        read = read_visualcloze(lora) if lora.suffix == ".pth" else read_diffusers(lora)
        typer.echo(write(read.cast(getattr(torch, dtype)), out))


@app.command()
def sample(
    lora: LoraArgument,
    task: Annotated[
        Path | None, typer.Argument(help="A task of your own: a .yaml with cells, phrases, holes, a caption.")
    ] = None,
    rows: Annotated[
        list[Path] | None, typer.Option(help="Your own pictures: a folder with one subfolder per row. Can be repeated.")
    ] = None,
    path: Annotated[str | None, typer.Option("--path", help="A task that the LoRA was trained on, by name.")] = None,
    kinds: Annotated[str, typer.Option(help="Or: the kinds of the columns, such as canny,image.")] = "",
    holes: Annotated[
        str, typer.Option(help="Cells to generate, such as image or canny,image. Default: those without a picture.")
    ] = "",
    caption: Annotated[str, typer.Option(help="Caption of the picture to generate.")] = "",
    graph: Annotated[str | None, typer.Option("--graph", help="Or: tasks drawn from this graph.")] = None,
    walks: Annotated[Path | None, typer.Option(help="With --graph: a frozen list of walks instead of draws.")] = None,
    count: Annotated[
        int | None, typer.Option(min=1, help="Tasks drawn from the graph (4), or pictures of each folder of rows (1).")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Items they are drawn from: validation, train, all. Default: those held out.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("samples"),
    recipe: Annotated[str | None, typer.Option(help="Recipe of the training; default: the one in its file.")] = None,
    model: ModelOption = None,
    sets: SetOption = None,
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    upscale: Annotated[
        int, typer.Option(min=0, help="Enlarge what was generated to the area of a square of this side, by SDEdit.")
    ] = 0,
    strength: Annotated[
        float, typer.Option(min=0.01, max=1, help="How much of an enlarged picture is made anew, of 1.")
    ] = 0.4,
) -> None:
    """Generate with a LoRA: from your own rows of pictures, or from tasks of a graph.

    Beside each picture lie a strip of all cells (-strip.png), its words and ids (.json) and, from a graph, the truth
    (-truth.png).

    A row is a folder with a picture for each column, called after it (canny.png) or by its number (2-photo.png), or
    else in the order of names (2 before 10). The last row lacks what is generated. Without --rows the words alone are
    given.

    Examples:

      graphbuild-train sample lora --rows rows/ --kinds canny,image --caption "a red bicycle by a wall"

      graphbuild-train sample lora task.yaml --rows first/ --rows second/ --upscale 1024

      graphbuild-train sample tiny-lora --graph sample-graph --count 2
    """
    with refusing():
        own = task is not None or path is not None or bool(kinds)
        if (own or bool(rows)) == (graph is not None):
            raise GraphError("say either --rows FOLDER, your own pictures, or --graph GRAPH")
        if walks is not None and graph is None:
            raise GraphError("--walks needs --graph: where the walks were drawn from")
        from graphbuild_train import sampling, task_list

        given = [*(sets or []), *_sets(None, model)]
        named = {text.partition("=")[0] for text in given}
        said = read_recipe(recipe_file(recipe)) if recipe else sampling.recipe_in(lora, named)
        config = configured(said, given)
        other = task_list.lists_of(config) if recipe or {"paths", "data"} & named else ()
        sampler = sampling.LoraSampler(lora, config, tasks=other)
        if walks is not None:
            tasks: Iterable[GridTask] = sampler.from_walks(str(graph), walks)
        elif graph is not None:
            tasks = sampler.from_graph(graph, count=count or 4, seed=seed, split=split)
        else:
            wanted = sampling.wanted(sampler, task, path, kinds)
            tasks = sampler.from_folders(rows or [], wanted, holes=listed(holes), caption=caption, seed=seed)
        seeds = range(seed, seed + (1 if graph is not None else count or 1))
        for file in sampling.generated(sampler, tasks, out, seeds=seeds, upscale=upscale, strength=strength):
            typer.echo(file)


def listed(text: str) -> list[str]:
    """The words of a list with commas."""
    return [word for word in text.split(",") if word]


if __name__ == "__main__":
    main()

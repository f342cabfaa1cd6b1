"""`graphbuild-train evaluate`: a LoRA, or baselines, on fixed walks of a graph."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from graphbuild.errors import GraphError
from graphbuild_train.cli import ERR, ModelOption, SetOption, app, listed, main, refusing
from graphbuild_train.config import TrainConfig
from graphbuild_train.recipes import configured, read_recipe, recipe_file

if TYPE_CHECKING:
    from graphbuild.tasks.paths import PathSet
    from graphbuild_train.sampling import LoraSampler

__all__ = ["app", "main"]


@app.command()
def evaluate(
    lora: Annotated[
        Path | None, typer.Argument(help="A run's folder, or a .safetensors in diffusers' form; none: baselines alone.")
    ] = None,
    graph: Annotated[str, typer.Option("--graph", help="The graph folder.")] = "",
    baselines: Annotated[
        list[str] | None,
        typer.Option(
            "--baseline",
            help="copy, mean, wrong_rows, base, omnigen (another model, given pictures and words), or none; can be "
            "repeated. Default: all that there can be, without omnigen.",
        ),
    ] = None,
    context: Annotated[str, typer.Option(help="Numbers of context rows.")] = "0,1,2",
    count: Annotated[int, typer.Option(min=1, help="Walks of each task.")] = 16,
    walks: Annotated[Path | None, typer.Option(help="A frozen list of walks instead of draws.")] = None,
    metrics: Annotated[
        str, typer.Option(help="Only these, such as f1,ssim. Default: all whose weights are here.")
    ] = "",
    weights: Annotated[
        list[str] | None,
        typer.Option(help="Weights of a network (clip, dino, vgg, inception), omnigen or a condition: clip=FOLDER."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for walks, pictures, figures and tables.")] = Path("evaluation"),
    recipe: Annotated[str | None, typer.Option(help="Recipe of the training; default: the one in its file.")] = None,
    model: ModelOption = None,
    sets: SetOption = None,
    seed: Annotated[int, typer.Option(help="Seed of the walks and of the noise.")] = 0,
) -> None:
    """Judge what a LoRA makes on fixed walks of held-out items, per task and number of context rows, beside baselines.

    OUT gets report.md (tables in the layout of VisualCloze's), report.json, report.html with the pictures, and
    walks.jsonl. The same command goes on where it was stopped; `accelerate launch` shares walks among GPUs.

    Examples:

      graphbuild-train evaluate lora --graph s200k-graph --count 64 --out evaluation

      graphbuild-train evaluate --graph s200k-graph --baseline copy --set paths=mine.yaml

      accelerate launch --num_processes 8 -m graphbuild_train evaluate lora --graph s200k-graph
    """
    with refusing():
        from graphbuild_train.evaluation.command import Asked, evaluated

        if not graph:
            raise GraphError("--graph is missing: the graph to evaluate on")
        sampler, config, lists = _subject(lora, recipe, model, sets)
        asked = Asked(
            graph=graph, context=_numbers(context), count=count, walks=walks, metrics=tuple(listed(metrics)),
            weights=_pairs(weights or []), baselines=baselines, seed=seed,
        )  # fmt: skip
        if report := evaluated(asked, sampler, config, lists, out, console=ERR):
            typer.echo(report)


def _subject(
    lora: Path | None, recipe: str | None, model: str | None, sets: Sequence[str] | None
) -> tuple[LoraSampler | None, TrainConfig, Sequence[PathSet]]:
    """The LoRA, its recipe and its task lists; without a LoRA what the command line says."""
    from graphbuild_train import sampling, task_list

    given = [*(sets or []), *([f"model={json.dumps(model)}"] if model else [])]
    named = {text.partition("=")[0] for text in given}
    said = sampling.recipe_in(lora, named) if lora and not recipe else {}
    if recipe:
        said = read_recipe(recipe_file(recipe))
    config = configured(said, given)
    if lora is None:
        return None, config, task_list.lists_of(config)
    other = task_list.lists_of(config) if recipe or {"paths", "data"} & named else ()
    sampler = sampling.LoraSampler(lora, config, tasks=other)
    return sampler, config, sampler.tasks


def _numbers(text: str) -> tuple[int, ...]:
    try:
        found = tuple(sorted({int(word) for word in listed(text)}))
    except ValueError:
        found = ()
    if not found or found[0] < 0:
        raise ValueError(f"--context {text}: allowed: numbers from 0, such as 0,1,2")
    return found


def _pairs(texts: Sequence[str]) -> dict[str, str]:
    pairs = [text.partition("=") for text in texts]
    if wrong := [name for name, equals, _ in pairs if not equals]:
        raise ValueError(f"--weights {wrong[0]}: allowed: name=folder, such as clip=weights/clip")
    return {name: place for name, _, place in pairs}

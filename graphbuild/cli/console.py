"""What all commands share: where they print, how they end, and the options that several of them have."""

from __future__ import annotations

import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from graphbuild.cli.text import shown, shown_lines
from graphbuild.errors import FULL, GraphError, MissingNode

OUT = Console(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else 160)
ERR = Console(stderr=True, soft_wrap=True, highlight=False)

DONE, UNDONE, REFUSED = 0, 1, 2

GraphArgument = Annotated[str, typer.Argument(help="The graph folder.", metavar="GRAPH")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
SourceOption = Annotated[
    str | None,
    typer.Option(
        help="Source of the items: sample, folder, parquet, webdataset, manifest, pairs, coco, video, subjects200k, or "
        "module:Class."
    ),
]
FolderArgument = Annotated[
    str | None, typer.Argument(help="A folder of photos, instead of --source and --path.", metavar="[FOLDER]")
]
PathOption = Annotated[str | None, typer.Option("--path", help="Folder or URL of the source.")]
PipelineOption = Annotated[
    str | None, typer.Option(help="Pipeline: a name or a .yaml file; default: the one named like the source.")
]
AnnotatorsOption = Annotated[
    str | None, typer.Option(help="Annotators or kinds, separated by commas; replaces the pipeline's.")
]
OutOption = Annotated[str | None, typer.Option(help="The graph folder; default: ./SOURCE-graph.")]
LimitOption = Annotated[int | None, typer.Option(min=1, help="Use only the first N items.")]
ShardSizeOption = Annotated[
    int | None, typer.Option(min=1, help="Items per shard of a new graph; default: at most 1024.")
]
ExecutorOption = Annotated[str, typer.Option(help="ray (every CPU), or inline (this process only).")]
AddressOption = Annotated[str | None, typer.Option(help="Address of a running Ray cluster; default: this machine.")]
DeviceOption = Annotated[
    Literal["auto", "cpu", "cuda"],
    typer.Option(help="Where models run: auto (GPUs if there is one), cpu, or cuda (wait for a node with a GPU)."),
]
WaitOption = Annotated[
    float | None,
    typer.Option(
        "--wait",
        min=0,
        metavar="SECONDS",
        help="Wait so long for a node that can run an annotator; default: 600 for one that is gone, else 0.",
    ),
]
FollowOption = Annotated[
    bool, typer.Option("--follow-links", help="Folder source: follow links that lead out of it, and linked folders.")
]
NodesOption = Annotated[
    str | None, typer.Option(help="Columns of the source that are kinds, YAML: '{image: target, depth: depth}'.")
]
FactsOption = Annotated[
    str | None, typer.Option(help="Columns of the source that are facts, YAML: '{caption: text, group: scene}'.")
]
AcceptOption = Annotated[bool, typer.Option("--accept-changed", help="Add changed files as new items.")]
PathsOption = Annotated[
    str | None, typer.Option(help="Task list: a name or a .yaml file; default: all that can be served.")
]
DataOption = Annotated[
    list[str] | None,
    typer.Option("--data", help="Instead of GRAPH, one of several, YAML: '{graph: a, paths: viton_hd, weight: 2}'."),
]
MissingOption = Annotated[
    str, typer.Option("--on-missing", help="If the graph cannot serve a path of the list: error, or drop the path.")
]
SeedOption = Annotated[int, typer.Option(help="Random seed.")]
RepeatOption = Annotated[
    int, typer.Option(min=1, help="Consecutive tasks that share a path and row count: your batch size.")
]
SplitOption = Annotated[str | None, typer.Option(help="A side of the leakage split: train, validation.")]
WhereOption = Annotated[str | None, typer.Option(help="Conditions on items, YAML: '{split: train}'.")]
HeldOutOption = Annotated[
    list[str] | None, typer.Option(help="A task never drawn, YAML: '{given: depth, holes: image}'.")
]
RowsOption = Annotated[str | None, typer.Option(help="Relative chances of 1, 2, ... rows: 0.3,0.4,0.3.")]
KeepOption = Annotated[str | None, typer.Option(help="Chances that words stay, YAML: '{task: 1, content: 1, all: 1}'.")]
MaskOption = Annotated[str | None, typer.Option(help="Which cells are hidden: code (default), paper or target.")]
WeightsOption = Annotated[
    str | None,
    typer.Option(help="How paths of a type are weighted: listed (default), or coverage (by the items of each)."),
]
LayoutOption = Annotated[str | None, typer.Option(help="The layout sentence: pipeline (default) or random.")]
SamplerOption = Annotated[
    str | None,
    typer.Option("--sampler", metavar="FILE", help="YAML with the keys of a recipe's sampler; options override it."),
]
SnapshotOption = Annotated[str | None, typer.Option(help="Digest of a published snapshot; default: the newest state.")]


@contextmanager
def signals_raise() -> Iterator[list[int]]:
    """Raise KeyboardInterrupt on Ctrl-C, SIGTERM and SIGHUP, so that temporary files are removed. Under `nohup` SIGHUP
    stays ignored.

    Yields:
        the numbers of the signals received: Ray raises a KeyboardInterrupt of its own in place of this one.
    """
    received: list[int] = []

    def interrupt(number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        received.append(number)
        raise KeyboardInterrupt

    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if (handler := signal.getsignal(number)) is not signal.SIG_IGN:
                before[number] = handler
                signal.signal(number, interrupt)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def refusing() -> Iterator[None]:
    """Wrong usage and refused input: one message, exit code 2; stopped by a signal: 128 + its number."""
    try:
        with signals_raise() as received:
            yield
    except (GraphError, MissingNode, ValueError) as error:
        raise stop(str(error), REFUSED) from error
    except FileNotFoundError as error:
        raise stop(f"{error.filename}: no such file or folder", REFUSED) from error
    except PermissionError as error:
        name = str(error.filename)
        raise stop(f"{name}: permission denied; see who may with: ls -ld {shlex.quote(name)}", REFUSED) from error
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise stop(f"{error.filename}: {error.strerror}; give another name", REFUSED) from error
    except OSError as error:
        fix = "make room there; " if error.errno in FULL else ""
        raise stop(f"{error}; {fix}what is committed is kept, run the same command again", UNDONE) from error
    except KeyboardInterrupt as error:
        code = 128 + (received[0] if received else signal.SIGINT)
        raise stop(f"stopped; what is committed is kept, continue with: {command_line()}", code) from error


def stop(why: str, code: int) -> typer.Exit:
    with suppress(OSError):  # a terminal that has hung up
        ERR.print(f"graphbuild: {shown_lines(why)}", markup=False)
    return typer.Exit(code)


def say(document: str, lines: Iterable[Any], as_json: bool) -> None:
    """Print one JSON document, or lines and tables with control characters escaped."""
    if as_json:
        typer.echo(document)
        return
    for line in lines:
        typer.echo(shown(line)) if isinstance(line, str) else OUT.print(line)


@contextmanager
def ticking(what: str, total: int) -> Iterator[Callable[[object], None]]:
    """A progress bar with the time left, on a terminal: a function to call after each of `total` steps."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    quiet, above = not ERR.is_terminal, sys.stdout.isatty()
    with Progress(*columns, console=ERR, transient=True, disable=quiet, redirect_stdout=above) as bar:
        task = bar.add_task(what, total=total)
        yield lambda _: bar.advance(task)


def command_line() -> str:
    return shlex.join(["graphbuild", *sys.argv[1:]])

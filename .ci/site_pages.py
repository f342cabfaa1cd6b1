"""Pages of the site that are made from the code: the command line, the annotators, the public Python names.

`site_pictures` makes the pictures of the annotators."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

import click
import site_pictures
import typer.main
from mkdocs.structure.files import File, Files

import graphbuild
import graphbuild_train
from graphbuild.annotators import BUILTIN, load_class
from graphbuild.annotators.base import Annotator, makes_of, needs_of
from graphbuild.cli import app
from graphbuild.kinds.registry import KINDS
from graphbuild_train.cli_evaluate import app as train_app

SOURCE = "https://github.com/graphbuild/graphbuild/blob/main/"
"""Where links to files outside docs/ lead."""


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are not in docs/."""
    made, computed = site_pictures.of_annotators(), site_pictures.of_computed_kinds()
    pages = {"cli.md": command_line(), "annotator-table.md": annotators(made, computed), "api.md": public_names()}
    pictures = {_picture(name): data for name, data in {**made, **computed}.items()}
    for name, content in {**pages, **pictures}.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links out of docs/ lead to the repository; marks for the tests of code blocks are for them alone."""
    return re.sub(r"\]\(\.\./", f"]({SOURCE}", re.sub(r"<!-- (test|parsed)[^\n]*-->\n+", "", markdown))


def command_line() -> str:
    """Every command with its arguments and options."""
    groups = {"graphbuild": typer.main.get_command(app), "graphbuild-train": typer.main.get_command(train_app)}
    lines = ["# Command line", ""]
    for name, group in groups.items():
        lines += [line for path, command in _commands(name, group) for line in _command(path, command)]
    return "\n".join(lines)


def _commands(path: str, command: Any) -> Iterator[tuple[str, Any]]:
    if not hasattr(command, "commands"):
        yield path, command
        return
    for name, each in command.commands.items():
        yield from _commands(f"{path} {name}", each)


def _command(path: str, command: Any) -> Iterator[str]:
    text = (command.help or "").replace("\b\n", "\n")
    about, _, examples = text.partition("Examples:")
    yield from (f"## `{path}`", "", " ".join(about.split()), "")
    if examples:
        yield from ("```sh", *(line.strip() for line in examples.strip().splitlines() if line.strip()), "```", "")
    rows = [_parameter(parameter) for parameter in command.params if not getattr(parameter, "hidden", False)]
    yield from ("| argument or option | what it is |", "|---|---|", *rows, "")


def _parameter(parameter: click.Parameter) -> str:
    names = ", ".join([*parameter.opts, *parameter.secondary_opts])
    if parameter.param_type_name == "argument":
        names = f"{parameter.name}".upper()
    about = " ".join((getattr(parameter, "help", None) or "").split()).replace("|", "\\|")
    default = parameter.default
    plain = isinstance(default, str | int | float) and not isinstance(default, bool) and default != ""
    return f"| `{names}` | {about}{f' Default: `{default}`.' if plain else ''} |"


def annotators(pictured: Iterable[str], computed: Iterable[str]) -> str:
    """What each annotator needs and makes, its weights, licence and memory; examples of those that run here.

    Args:
        pictured: annotators with a picture.
        computed: kinds with one.
    """
    lines = ["# Every annotator", "", "What they do and their parameters: [annotators.md](annotators.md).", ""]
    lines += ["| annotator | makes | from | weights | licence | memory |", "|---|---|---|---|---|---|"]
    lines += [_annotator(name, load_class(name)) for name in BUILTIN]
    lines += ["", "## Examples", "", "What is read, then what is made of it, by those that ran for this page.", ""]
    lines += ["| annotator | example |", "|---|---|", *(f"| `{name}` | {_shown(name)} |" for name in pictured)]
    lines += ["", "## Computed on read", "", "Kinds without an annotator; see [tasks.md](tasks.md).", ""]
    lines += ["| kind | what it is | example |", "|---|---|---|"]
    lines += [f"| `{name}` | {KINDS[name].description} | {_shown(name)} |" for name in computed]
    return "\n".join([*lines, "", "![The degradations of one photograph](degradations.jpg)"])


def _annotator(name: str, cls: type[Annotator]) -> str:
    made = cls()
    weights = list(made.checkpoints().values())
    models = ", ".join(f"`{weight.model.partition('@')[0]}` {weight.gigabytes:g} GB" for weight in weights) or "none"
    licences = ", ".join(dict.fromkeys(weight.licence for weight in weights)) or ""
    memory = f"{made.resources.memory_gb:g} GB" if made.resources.memory_gb else ""
    makes = ", ".join(f"`{kind.name}`" for kind in makes_of(made).values())
    needs = ", ".join(f"`{need}`" for need in needs_of(made))
    return f"| `{name}` | {makes} | {needs} | {models} | {licences} | {memory} |"


def _picture(name: str) -> str:
    return f"examples/{name}.jpg"


def _shown(name: str) -> str:
    return f"![Example of {name}]({_picture(name)}){{ loading=lazy }}"


def public_names() -> str:
    """A reference of what the two packages export."""
    lines = ["# Python", "", "What `import graphbuild as gb` and `import graphbuild_train` offer.", ""]
    for package in (graphbuild, graphbuild_train):
        lines += [f"## {package.__name__}", ""]
        lines += [f"::: {package.__name__}.{name}\n" for name in sorted(package.__all__, key=str.lower)]
    return "\n".join(lines)

"""Classes by name: a short name, an entry point of an installed package, or `module:Class`. Nothing is imported until
it is asked for."""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import distribution, entry_points, packages_distributions
from pathlib import Path
from pkgutil import resolve_name
from typing import Any


def find(what: str, name: str, builtin: Mapping[str, str], group: str, *, also: Iterable[str] = ()) -> Any:
    """The object behind a name. Entry points are read only for names that are not built in.

    Args:
        what: a noun for messages, such as `annotator`.
        builtin: short name -> `module:attribute`.
        group: of entry points.
        also: further names to list in a message.

    Raises:
        ValueError: no such name, or it cannot be imported; the message lists what there is.
    """
    target = builtin.get(name) or (name if ":" in name else _from_entry_points(what, name, {*builtin, *also}, group))
    module, _, attribute = target.partition(":")
    if not re.fullmatch(r"\w+(\.\w+)*:\w+(\.\w+)*", target) or module.endswith(".py"):
        right = f"{module.removesuffix('.py').strip('./').replace('/', '.') or 'my_module'}:{attribute or 'Class'}"
        raise ValueError(f"{what} {name!r}: allowed: module:Class, such as {right}")
    try:
        return resolve_name(target)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{what} {name!r}: {error}; it is looked for in the current folder ({os.getcwd()}), beside the YAML file "
            "that names it, and among installed packages (pip install)"
        ) from error
    except (Exception, SystemExit) as error:  # whatever a user's module raises
        hint = suggestion(attribute, vars(sys.modules.get(module, object)))
        raise ValueError(f"{what} {name!r}: cannot load it: {type(error).__name__}: {error}{hint}") from error


def find_class(
    what: str, name: str, builtin: Mapping[str, str], group: str, base: type, *, also: Iterable[str] = ()
) -> Any:
    """`find` for a subclass of `base`.

    Raises:
        ValueError: as `find`, or it is not such a class.
    """
    found = find(what, name, builtin, group, also=also)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ValueError(f"{what} {name!r}: it is no subclass of graphbuild.{base.__name__}; name one")
    return found


def suggestion(name: str, names: Iterable[str]) -> str:
    """` (did you mean 'canny'?)`, or nothing if no name is like it."""
    close = difflib.get_close_matches(name, list(names), 1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def look_in(*folders: str | os.PathLike[str]) -> None:
    """Put these folders on the import path, after installed packages."""
    sys.path += [path for folder in folders if (path := os.path.abspath(folder)) not in sys.path]


def short_name(what: str, use: str, builtin: Mapping[str, str]) -> str:
    """The short name of a built-in class that a graph recorded: that name, or `graphbuild.<module>:<Class>` as the
    first release wrote it. Graphs are untrusted: nothing else that they name is imported.

    Raises:
        ValueError: not one of ours.
    """
    module, _, name = use.rpartition(":")
    by_class = {target.rpartition(":")[2]: short for short, target in builtin.items()}
    if use in builtin:
        return use
    if module.startswith("graphbuild.") and name in by_class:
        return by_class[name]
    raise ValueError(
        f"{what} {use!r} is not part of graphbuild, and no code is loaded because a graph names it; name it yourself: "
        f"--pipeline FILE"
    )


@cache
def author_of(cls: type) -> str | None:
    """Who wrote a class: the installed distribution that its file belongs to, else its module; None for ours."""
    package = cls.__module__.partition(".")[0]
    if package == __name__.partition(".")[0]:
        return None
    file = getattr(sys.modules.get(cls.__module__), "__file__", None) or ""
    for name in _owners(tuple(sys.path)).get(package, ()):
        if Path(file).is_relative_to(Path(str(distribution(name).locate_file("")))):
            return name
    return cls.__module__


@cache
def _owners(path: tuple[str, ...]) -> Mapping[str, list[str]]:
    """Top-level package -> distributions that install it. Looking takes a second: it reads what each one lists."""
    return packages_distributions()


def names_in(group: str) -> list[str]:
    """The entry points that installed packages have in a group, sorted."""
    return sorted({point.name for point in entry_points(group=group)})


def _from_entry_points(what: str, name: str, known: set[str], group: str) -> str:
    points = {point.name: point.value for point in entry_points(group=group)}
    if name in points:
        return points[name]
    names = sorted(known | set(points))
    listed = f"known: {', '.join(names)}, or module:Class"
    raise ValueError(f"unknown {what} {name!r}{suggestion(name, names)}; {listed}")

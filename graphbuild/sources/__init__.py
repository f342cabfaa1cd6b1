"""Where items come from: one file each, looked up by name and imported only then."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graphbuild.sources.base import Source

SOURCES: Mapping[str, str] = {
    "folder": "graphbuild.sources.folder:Folder",
    "sample": "graphbuild.sources.sample:Sample",
    "subjects200k": "graphbuild.sources.subjects200k:Subjects200K",
}
"""The sources that come with graphbuild. Others: `pkg.mod:Class`, or the entry point group `graphbuild.sources`."""


def resolve(name: str, **kwargs: Any) -> Source:
    """The source called `name` (a short name, an entry point, or `pkg.mod:Class`) with `kwargs` as its fields.

    Raises:
        ValueError: no such source, or a field it does not have; the message lists the valid ones.
    """
    from dataclasses import fields

    cls = _load(name)
    valid = [f.name for f in fields(cls) if f.init]
    unknown = sorted(set(kwargs) - set(valid))
    if unknown:
        takes = f"it takes {', '.join(valid)}" if valid else "it takes no settings"
        raise ValueError(f"source {name!r} has no {', '.join(unknown)}; {takes}")
    return cls(**kwargs)


def _load(name: str) -> type[Source]:
    from importlib.metadata import entry_points
    from pkgutil import resolve_name

    from graphbuild.sources.base import Source

    # Entry points are read on look-up only, so that nobody pays for plug-ins they do not use.
    plugins = {point.name: point.value for point in entry_points(group="graphbuild.sources")} | dict(SOURCES)
    target = name if ":" in name else plugins.get(name)
    if target is None:
        raise ValueError(f"unknown source {name!r}; there are {', '.join(sorted(plugins))}, or pkg.mod:Class")
    try:
        cls = resolve_name(target)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"source {name!r}: {target} cannot be loaded: {error}") from error
    if not (isinstance(cls, type) and issubclass(cls, Source)):
        raise ValueError(f"source {name!r}: {target} is not a Source class")
    return cls

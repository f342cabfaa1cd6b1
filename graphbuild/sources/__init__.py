"""Where items come from: one file each, looked up by name and imported only then."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from graphbuild.config.lookup import find_class, suggestion

if TYPE_CHECKING:
    from graphbuild.sources.base import Source

SOURCES: Mapping[str, str] = {
    "coco": "graphbuild.sources.coco:Coco",
    "compose": "graphbuild.sources.compose:Compose",
    "folder": "graphbuild.sources.folder:Folder",
    "manifest": "graphbuild.sources.manifest:Manifest",
    "pairs": "graphbuild.sources.pairs:Pairs",
    "parquet": "graphbuild.sources.parquet:Parquet",
    "sample": "graphbuild.sources.sample:Sample",
    "scenes": "graphbuild.sources.scenes:Scenes",
    "subjects200k": "graphbuild.sources.subjects200k:Subjects200K",
    "video": "graphbuild.sources.video:Video",
    "webdataset": "graphbuild.sources.webdataset:WebDataset",
}
"""The sources that come with graphbuild. Others: `pkg.mod:Class`, or the entry point group `graphbuild.sources`."""


def resolve(name: str, **kwargs: Any) -> Source:
    """The source called `name` (a short name, an entry point, or `pkg.mod:Class`) with `kwargs` as its fields.

    Raises:
        ValueError: no such source, a field it does not have, or a value of the wrong type; the message lists what is
            valid.
    """
    from dataclasses import fields

    from graphbuild.config.strict_yaml import checked

    cls = _load(name)
    valid = [f.name for f in fields(cls) if f.init]
    unknown = sorted(set(kwargs) - set(valid))
    if unknown:
        takes = f"it takes {', '.join(valid)}{suggestion(unknown[0], valid)}" if valid else "it takes no settings"
        raise ValueError(f"source {name!r} has no {', '.join(unknown)}; {takes}")
    try:
        return cls(**checked(cls, kwargs))
    except (TypeError, ValueError) as error:
        raise ValueError(f"source {name!r}: {error}") from error


def _load(name: str) -> type[Source]:
    from graphbuild.sources.base import Source

    cls: type[Source] = find_class("source", name, SOURCES, "graphbuild.sources", Source)
    return cls

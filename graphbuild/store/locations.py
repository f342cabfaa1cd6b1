"""Where a graph is: what a user gives as `GRAPH` or `--out`, as the files there."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote

from graphbuild.errors import GraphError
from graphbuild.store.files import Files, LocalFiles
from graphbuild.store.objects import ObjectFiles

STORES = ("s3", "gs", "az")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")


def files_at(url: str | os.PathLike[str]) -> Files:
    """The files of the graph at a location: a path, a `file://` URL, or one of an object store: `s3://bucket/graph`,
    `gs://bucket/graph`, `az://container/graph`.

    Raises:
        GraphError: a URL of another scheme, or object stores need a package that is not installed.
    """
    text = os.fspath(url)
    if (scheme := _scheme(text)) in STORES:
        return ObjectFiles(f"{scheme}://{text.partition(':')[2].strip('/')}")  # `pathlib` shortens s3:// to s3:/
    return LocalFiles(local_path(url))


def local_path(url: str | os.PathLike[str]) -> Path:
    """The path that a location given by a user stands for: itself, or what follows `file://`.

    Raises:
        GraphError: a URL of another scheme, also where `pathlib` has made `s3:/bucket` of `s3://bucket`.
    """
    text = os.fspath(url)
    if (scheme := _scheme(text)) is None:
        return Path(text)
    if scheme in STORES:
        raise GraphError(f"{text}: must be a folder on this machine; only a graph can be in an object store")
    if scheme != "file":
        graphs = ", ".join(f"{store}://" for store in STORES)
        raise GraphError(f"{text}: {scheme}:// is not supported; give a path, for a graph also one of {graphs}")
    return Path(unquote("/" + text.partition(":")[2].lstrip("/")))


def _scheme(text: str) -> str | None:
    found = _SCHEME.match(text)
    return None if found is None else found[1].lower()

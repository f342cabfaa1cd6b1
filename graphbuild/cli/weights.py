"""The weights behind annotators: which they load, whether they are here, and getting them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from graphbuild.annotators import BUILTIN, DEFAULT_FOR, GROUP, load_class, resolve
from graphbuild.annotators.base import Annotator, makes_of, name_of
from graphbuild.config.lookup import names_in
from graphbuild.errors import GraphError
from graphbuild.models.checkpoint import Checkpoint
from graphbuild.pipeline import load_annotators

Row = dict[str, Any]


def listing(pipeline: str | None = None) -> list[Row]:
    """Every annotator, also of installed packages, or those of a pipeline: what it makes, and of each checkpoint the
    model, its licence, its size in GB and whether it is on this machine."""
    rows = [_row(annotator) for annotator in _annotators(pipeline)]
    return rows if pipeline is not None else rows + [_installed(name) for name in names_in(GROUP)]


def wanted(names: Sequence[str], pipeline: str | None = None) -> list[Checkpoint]:
    """The checkpoints behind annotator names, kinds and repositories.

    Raises:
        ValueError: nothing was named, or a name is none of them.
    """
    if not names and pipeline is None:
        raise GraphError("say what to fetch: annotators, kinds, repositories (org/name) or --pipeline NAME")
    chosen = _annotators(pipeline) if pipeline is not None else []
    chosen += [resolve(name) for name in names if "/" not in name]
    found = [checkpoint for annotator in chosen for checkpoint in annotator.checkpoints().values()]
    found += [_known(name) for name in names if "/" in name]
    return list(dict.fromkeys(checkpoint for checkpoint in found if not checkpoint.local))


def fetch(checkpoint: Checkpoint) -> Path:
    """Download a checkpoint.

    Raises:
        GraphError: the hub cannot be reached, knows no such repository, or wants its licence accepted first.
    """
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    page = f"https://huggingface.co/{checkpoint.repository}"
    try:
        return checkpoint.fetch()
    except GatedRepoError as error:
        raise GraphError(
            f"{checkpoint.repository} is gated: accept its licence at {page}, log in with: hf auth login (or set "
            f"HF_TOKEN), then run again: graphbuild models fetch {checkpoint.model}"
        ) from error
    except RepositoryNotFoundError as error:
        raise GraphError(
            f"{checkpoint.repository}: there is no such repository, or a private one; see {page}, and log in with: hf "
            "auth login"
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise GraphError(f"{checkpoint.repository}: cannot be downloaded: {str(error).splitlines()[0]}") from error


def _annotators(pipeline: str | None) -> list[Annotator]:
    if pipeline is not None:
        return list(load_annotators(pipeline))
    return [load_class(name)() for name in BUILTIN]


def _installed(name: str) -> Row:
    """One of a package; a broken package costs its own row."""
    try:
        return {**_row(resolve(name)), "annotator": name}
    except (ValueError, TypeError) as error:
        return {"annotator": name, "makes": [], "default_for": [], "memory_gb": 0.0, "checkpoints": [],
                "missing": [str(error)]}  # fmt: skip


def _row(annotator: Annotator) -> Row:
    name = name_of(annotator)
    return {
        "annotator": name,
        "makes": [kind.name for kind in makes_of(annotator).values()],
        "default_for": [kind for kind, default in DEFAULT_FOR.items() if default == name],
        "memory_gb": annotator.resources.memory_gb,
        "checkpoints": [_checkpoint(checkpoint) for checkpoint in annotator.checkpoints().values()],
        "missing": annotator.missing(),
    }


def _checkpoint(checkpoint: Checkpoint) -> Row:
    return {
        "model": checkpoint.model,
        "licence": checkpoint.licence,
        "commercial": checkpoint.commercial,
        "gigabytes": checkpoint.gigabytes,
        "cached": checkpoint.missing() is None,
    }


def _known(model: str) -> Checkpoint:
    """The checkpoint of a repository, with all the files that annotators of ours load from it."""
    asked = Checkpoint(model)
    ours = [c for a in _annotators(None) for c in a.checkpoints().values() if c.repository == asked.repository]
    if not ours:
        return asked
    files = tuple(dict.fromkeys(pattern for checkpoint in ours for pattern in checkpoint.files))
    return replace(ours[0], model=model, files=files)

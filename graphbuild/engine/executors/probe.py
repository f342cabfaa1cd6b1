"""What a node of a cluster needs to work on a graph, looked for on the node itself. Knows nothing of Ray."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, packages_distributions, version

from graphbuild import __version__
from graphbuild.annotators.base import Annotator, missing_libraries, name_of
from graphbuild.config.lookup import look_in
from graphbuild.engine.records import AnnotateUnit, AnyUnit, IngestUnit
from graphbuild.models.device import device_memory
from graphbuild.sources.base import Source
from graphbuild.store.locations import files_at

_ALWAYS = ("numpy", "opencv-python-headless", "pillow", "pyarrow", "scikit-image", "scipy", "simplejpeg")
"""Distributions whose version may change a pixel or a stored byte."""

_BASE = {"python": ".".join(platform.python_version_tuple()[:2]), "graphbuild": __version__}


@dataclass(frozen=True, kw_only=True)
class Requirements:
    """What the driver has, and every node has to have.

    Attributes:
        url: the graph, with the workspace of this run.
        folder: the driver's current folder, which relative paths start from.
        path: the driver's import path.
        versions: package -> version.
        source: where items are read, with the key of one that was just listed.
        annotators: those of this run; `local` maps a local model to its digest, or to "" where it was not looked at.
    """

    url: str
    workspace: str
    folder: str
    path: tuple[str, ...]
    versions: Mapping[str, str]
    source: Source | None = None
    listed: str | None = None
    annotators: tuple[Annotator, ...] = ()
    local: Mapping[str, str] = field(default_factory=dict)

    @property
    def classes(self) -> list[type]:
        """Of source and annotators."""
        return [type(each) for each in (self.source, *self.annotators) if each is not None]


@dataclass(frozen=True)
class Findings:
    """What a node lacks: for any work, and for single annotators (name -> reason). `gpu_gb` is the memory of its first
    GPU in GB (10^9 bytes), 0 if none was looked for."""

    node: tuple[str, ...] = ()
    annotators: Mapping[str, str] = field(default_factory=dict)
    gpu_gb: float = 0.0


def requirements(url: str, workspace: str, path: Sequence[str], units: Sequence[AnyUnit]) -> Requirements:
    """What these units need, as it is on this machine."""
    ingested = [work for work in units if isinstance(work, IngestUnit)]
    listed = next((entry.key for work in ingested for entry in work.entries or ()), None)
    annotators = tuple(dict.fromkeys(work.annotator for work in units if isinstance(work, AnnotateUnit)))
    libraries = {name for annotator in annotators for name in annotator.libraries}
    return Requirements(
        url=url,
        workspace=workspace,
        folder=os.getcwd(),
        path=tuple(path),
        versions=_BASE | _versions({*_ALWAYS, *libraries}),
        source=ingested[0].source if ingested else None,
        listed=listed,
        annotators=annotators,
        local={
            checkpoint.model: checkpoint.identity()
            for annotator in annotators
            for checkpoint in annotator.checkpoints().values()
            if checkpoint.local
        },
    )


def _versions(names: set[str]) -> dict[str, str]:
    """Distribution -> version, of these distributions or of what installed these import names. What each distribution
    installs takes a second to read: it is read only for names that are no distributions.
    """
    here = {name: _version_here(name) for name in sorted(names)}
    others = [name for name, found in here.items() if found is None]
    owners = packages_distributions() if others else {}
    here |= {owner: version(owner) for name in others for owner in owners.get(name, ())}
    return {name: found for name, found in here.items() if found is not None}


def settle_in(folder: str, path: Sequence[str]) -> None:
    """Make relative paths and imports mean here what they mean in the driver, where its folders are here too."""
    if os.path.isdir(folder):
        os.chdir(folder)
    look_in(*path)


def findings(needs: Requirements, gpus: float) -> Findings:
    """What this node lacks. `gpus` is how many GPUs Ray says it has."""
    lacking = tuple(_node_lacks(needs))
    if lacking:
        return Findings(lacking)
    wanted = [annotator for annotator in needs.annotators if _wants_gpu(annotator)]
    device, memory = device_memory() if gpus and wanted else ("", 0.0)
    found = {}
    for annotator in needs.annotators:
        if reasons := [*_annotator_lacks(annotator, needs.local)]:
            found[name_of(annotator)] = "; ".join(reasons)
        elif device == "cpu" and annotator in wanted and "torch" in annotator.libraries:
            found[name_of(annotator)] = f"torch finds none of its {gpus:g} GPUs: see nvidia-smi there"
    return Findings((), found, memory if device == "cuda" else 0.0)


def _wants_gpu(annotator: Annotator) -> bool:
    return bool(annotator.resources.gpus or annotator.resources.memory_gb)


def _node_lacks(needs: Requirements) -> Iterator[str]:
    for package, wanted in needs.versions.items():
        if (here := _version_here(package)) != wanted:
            yield f"{package} is {here or 'not installed'}, the driver has {wanted}"
    files = files_at(needs.url)
    if not files.exists("graph.json") or needs.workspace not in files.names("_tmp"):
        yield f"the graph {files.url} of this run is not there: is the folder shared, and mounted at this place?"
    if needs.source is not None and (line := needs.source.out_of_reach(needs.listed)):
        yield line


def _version_here(package: str) -> str | None:
    try:
        return _BASE.get(package) or version(package)
    except PackageNotFoundError:
        return None


def _annotator_lacks(annotator: Annotator, local: Mapping[str, str]) -> Iterator[str]:
    """Weights on the hub are no reason: they are fetched on first use, unless this node may not ask for them."""
    yield from missing_libraries(annotator.libraries)
    for checkpoint in annotator.checkpoints().values():
        if wanted := local.get(checkpoint.model):
            if not checkpoint.local:
                yield f"no {os.path.abspath(checkpoint.model)}: copy the model to every node"
            elif checkpoint.identity() != wanted:
                yield f"{os.path.abspath(checkpoint.model)} is not the model that the driver has"
        elif _offline() and (line := checkpoint.missing()):
            yield line


def _offline() -> bool:
    from huggingface_hub.constants import HF_HUB_OFFLINE

    return bool(HF_HUB_OFFLINE)

"""Images to a graph of annotations, and the graph to in-context training tasks.

>>> import graphbuild as gb
>>> report = gb.run(gb.source("sample"), ["canny", "lsd"], out="graph/")      # doctest: +SKIP
>>> gb.Graph.open("graph/").read(0, "canny").array()                          # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graphbuild.annotators import resolve as annotator
    from graphbuild.annotators.base import Annotator, Condition, Derived, Request, Resources, Skip, each, parameter
    from graphbuild.annotators.testing import AnnotatorCheckError, check_annotator
    from graphbuild.contracts import RunReport
    from graphbuild.engine.gc import gc
    from graphbuild.engine.run import run
    from graphbuild.errors import CorruptNode, GraphError, MissingNode, MissingWeights, UnusableImage
    from graphbuild.images.node import Node
    from graphbuild.kinds.registry import KINDS, Kind
    from graphbuild.models.checkpoint import Checkpoint
    from graphbuild.sources import resolve as source
    from graphbuild.sources.base import Entry, Given, Source, SourceItem, Unusable, location
    from graphbuild.sources.testing import SourceCheckError, check_source
    from graphbuild.store.graph import Graph
    from graphbuild.tasks.config import CellConfig, HeldOut, SamplerConfig
    from graphbuild.tasks.grid import GridTask
    from graphbuild.tasks.mixture import TaskMixture
    from graphbuild.tasks.paths import PathSet, TaskPath
    from graphbuild.tasks.paths import load as load_paths
    from graphbuild.tasks.pictures import PictureRows
    from graphbuild.tasks.sampler import PathSampler
    from graphbuild.tasks.visualcloze import generate
    from graphbuild.tasks.walk import Walk

_HOMES = {
    "annotators": "resolve=annotator",
    "annotators.base": "Annotator Condition Derived Request Resources Skip each parameter",
    "annotators.testing": "AnnotatorCheckError check_annotator",
    "contracts": "RunReport",
    "engine.gc": "gc",
    "engine.run": "run",
    "errors": "CorruptNode GraphError MissingNode MissingWeights UnusableImage",
    "images.node": "Node",
    "kinds.registry": "KINDS Kind",
    "models.checkpoint": "Checkpoint",
    "sources": "resolve=source",
    "sources.base": "Entry Given Source SourceItem Unusable location",
    "sources.testing": "SourceCheckError check_source",
    "store.graph": "Graph",
    "tasks.config": "CellConfig HeldOut SamplerConfig",
    "tasks.grid": "GridTask",
    "tasks.mixture": "TaskMixture",
    "tasks.paths": "PathSet TaskPath load=load_paths",
    "tasks.pictures": "PictureRows",
    "tasks.sampler": "PathSampler",
    "tasks.visualcloze": "generate",
    "tasks.walk": "Walk",
}
"""Module -> its public names, `name=public name` where the two differ."""

_HOME = {
    name.rpartition("=")[2]: (f"graphbuild.{module}", name.partition("=")[0])
    for module, names in _HOMES.items()
    for name in names.split()
}

__version__ = "0.1.0"
__all__ = [
    "KINDS",
    "Annotator",
    "AnnotatorCheckError",
    "CellConfig",
    "Checkpoint",
    "Condition",
    "CorruptNode",
    "Derived",
    "Entry",
    "Given",
    "Graph",
    "GraphError",
    "GridTask",
    "HeldOut",
    "Kind",
    "MissingNode",
    "MissingWeights",
    "Node",
    "PathSampler",
    "PathSet",
    "PictureRows",
    "Request",
    "Resources",
    "RunReport",
    "SamplerConfig",
    "Skip",
    "Source",
    "SourceCheckError",
    "SourceItem",
    "TaskMixture",
    "TaskPath",
    "Unusable",
    "UnusableImage",
    "Walk",
    "annotator",
    "check_annotator",
    "check_source",
    "each",
    "gc",
    "generate",
    "load_paths",
    "location",
    "parameter",
    "run",
    "source",
]


def __getattr__(name: str) -> Any:
    """Public names are imported on first use, so that `import graphbuild` stays light."""
    if name not in _HOME:
        raise AttributeError(f"module 'graphbuild' has no attribute {name!r}")
    module, attribute = _HOME[name]
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]

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
    from graphbuild.engine.run import run
    from graphbuild.errors import CorruptNode, GraphError, MissingNode, UnusableImage
    from graphbuild.images.node import Node
    from graphbuild.kinds.registry import KINDS, Kind
    from graphbuild.models.checkpoint import Checkpoint
    from graphbuild.sources import resolve as source
    from graphbuild.sources.base import Entry, Source, SourceItem, Unusable, location
    from graphbuild.store.graph import Graph
    from graphbuild.tasks.config import HeldOut, SamplerConfig
    from graphbuild.tasks.grid import GridTask
    from graphbuild.tasks.sampler import PathSampler
    from graphbuild.tasks.walk import Walk

_HOME = {
    "annotator": "graphbuild.annotators:resolve",
    "source": "graphbuild.sources:resolve",
    "run": "graphbuild.engine.run:run",
    "Graph": "graphbuild.store.graph:Graph",
    "GridTask": "graphbuild.tasks.grid:GridTask",
    **{name: f"graphbuild.annotators.base:{name}" for name in ("Annotator", "Condition", "Derived", "Request")},
    **{name: f"graphbuild.annotators.base:{name}" for name in ("Resources", "Skip", "each", "parameter")},
    **{name: f"graphbuild.annotators.testing:{name}" for name in ("AnnotatorCheckError", "check_annotator")},
    "Checkpoint": "graphbuild.models.checkpoint:Checkpoint",
    **{name: f"graphbuild.sources.base:{name}" for name in ("Entry", "Source", "SourceItem", "Unusable", "location")},
    **{name: f"graphbuild.errors:{name}" for name in ("CorruptNode", "GraphError", "MissingNode", "UnusableImage")},
    "RunReport": "graphbuild.contracts:RunReport",
    "Node": "graphbuild.images.node:Node",
    **{name: f"graphbuild.kinds.registry:{name}" for name in ("KINDS", "Kind")},
    "PathSampler": "graphbuild.tasks.sampler:PathSampler",
    "Walk": "graphbuild.tasks.walk:Walk",
    **{name: f"graphbuild.tasks.config:{name}" for name in ("HeldOut", "SamplerConfig")},
}

__version__ = "0.1.0"
__all__ = [
    "KINDS",
    "Annotator",
    "AnnotatorCheckError",
    "Checkpoint",
    "Condition",
    "CorruptNode",
    "Derived",
    "Entry",
    "Graph",
    "GraphError",
    "GridTask",
    "HeldOut",
    "Kind",
    "MissingNode",
    "Node",
    "PathSampler",
    "Request",
    "Resources",
    "RunReport",
    "SamplerConfig",
    "Skip",
    "Source",
    "SourceItem",
    "Unusable",
    "UnusableImage",
    "Walk",
    "annotator",
    "check_annotator",
    "each",
    "location",
    "parameter",
    "run",
    "source",
]


def __getattr__(name: str) -> Any:
    """Public names are imported on first use, so that `import graphbuild` stays light."""
    if name not in _HOME:
        raise AttributeError(f"module 'graphbuild' has no attribute {name!r}")
    module, _, attribute = _HOME[name].partition(":")
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]

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
    from graphbuild.annotators.check import AnnotatorCheckError, check_annotator
    from graphbuild.annotators.checkpoint import Checkpoint
    from graphbuild.build.run import run
    from graphbuild.codecs import Node, UnusableImage
    from graphbuild.contracts import CorruptNode, GraphError, MissingNode, RunReport
    from graphbuild.grid import GridTask
    from graphbuild.kinds import KINDS, Kind
    from graphbuild.sources import resolve as source
    from graphbuild.sources.base import Entry, Source, SourceItem, Unusable, location
    from graphbuild.store.graph import Graph
    from graphbuild.switches import HeldOut, SamplerConfig
    from graphbuild.walk import PathSampler, Walk

_HOME = {
    "annotator": "graphbuild.annotators:resolve",
    "source": "graphbuild.sources:resolve",
    "run": "graphbuild.build.run:run",
    "Graph": "graphbuild.store.graph:Graph",
    "GridTask": "graphbuild.grid:GridTask",
    **{name: f"graphbuild.annotators.base:{name}" for name in ("Annotator", "Condition", "Derived", "Request")},
    **{name: f"graphbuild.annotators.base:{name}" for name in ("Resources", "Skip", "each", "parameter")},
    **{name: f"graphbuild.annotators.check:{name}" for name in ("AnnotatorCheckError", "check_annotator")},
    "Checkpoint": "graphbuild.annotators.checkpoint:Checkpoint",
    **{name: f"graphbuild.sources.base:{name}" for name in ("Entry", "Source", "SourceItem", "Unusable", "location")},
    **{name: f"graphbuild.contracts:{name}" for name in ("CorruptNode", "GraphError", "MissingNode", "RunReport")},
    **{name: f"graphbuild.codecs:{name}" for name in ("Node", "UnusableImage")},
    **{name: f"graphbuild.kinds:{name}" for name in ("KINDS", "Kind")},
    **{name: f"graphbuild.walk:{name}" for name in ("PathSampler", "Walk")},
    **{name: f"graphbuild.switches:{name}" for name in ("HeldOut", "SamplerConfig")},
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

"""What a user's own code does with the public names, for `test_typing`: it is checked, and never run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

import graphbuild as gb

NEGATIVE = gb.Kind(name="negative", family="image", codec="source", description="a negative", phrases=("a negative",))


@dataclass(frozen=True, kw_only=True)
class Inverted(gb.Annotator):
    needs = ("image",)
    makes = (
        gb.Kind(name="inverted", family="image", codec="source", description="a negative", phrases=("a negative",)),
    )
    strength: Annotated[float, Field(ge=0.0, le=1.0)] = 1.0

    def annotate(self, batch: Sequence[gb.Request], model: Any) -> Sequence[gb.Derived | gb.Skip | Exception]:
        return [gb.Derived({"negative": 255 - request.inputs["image"].array()}) for request in batch]


def built(folder: str) -> gb.RunReport:
    return gb.run(gb.source("folder", path=folder), ["canny", Inverted(strength=0.5)], out="graph", executor="inline")


def read(graph: gb.Graph) -> tuple[NDArray[Any], str, int]:
    node: gb.Node = graph.read(0, "canny")
    return node.array(), graph.read(0, "caption").text, sum(graph.kinds().values())


def drawn(graph: gb.Graph) -> NDArray[np.uint8]:
    config = gb.SamplerConfig(rows=(0.5, 0.5))
    sampler = gb.PathSampler(graph, paths="graph200k", seed=1, config=config, on_missing="drop")
    task: gb.GridTask = sampler.task(7, resolution=256)
    return np.asarray(task.image())

"""Sources that tests, Ray workers and subprocesses import alike."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from graphbuild.annotators.base import Annotator, Derived, Request, Skip
from graphbuild.errors import GraphError, UnusableImage
from graphbuild.sources.base import Entry, Source, SourceItem
from tests.support.annotators import calls, log, orders


def put(root: Path, files: dict[str, bytes]) -> Path:
    """Write files below a folder, by their names in it."""
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


class Unsayable(Exception):
    """An exception whose message raises in turn."""

    def __str__(self) -> str:
        raise RuntimeError("no message")


def misbehave(order: str | None) -> None:
    """Raise, or end this process, as ordered."""
    match order:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "exit":
            os._exit(7)
        case "system_exit":
            raise SystemExit(3)
        case "memory":
            raise MemoryError
        case "graph_error":
            raise GraphError("not of the graph at all")
        case "unsayable":
            raise Unsayable
        case "surrogate":
            raise RuntimeError("half a letter \udc80, \x1b[31mred")


@dataclass(frozen=True, kw_only=True)
class InMemory(Source):
    """`count` small pictures `000`, `001`, ... that do what the test orders for its tag."""

    name: ClassVar[str] = "in_memory"
    tag: str
    count: int = 6
    side: int = 16

    def entries(self) -> Sequence[Entry]:
        if "gone" in calls(self.tag):
            raise ValueError("source 'in_memory': the place is gone")
        return [Entry(f"{number:03d}", "1") for number in range(self.count)]

    def read(self, keys: Sequence[str]) -> Iterator[SourceItem]:
        for key in keys:
            log(self.tag, key)
            if (order := orders(self.tag).get(key)) == "gone":
                log(self.tag, "gone")
            misbehave("memory" if "gone" in calls(self.tag) else order)
            picture = np.random.default_rng(int(key)).integers(0, 255, (self.side, self.side, 3), dtype=np.uint8)
            data = b"P6 %d %d 255\n" % (self.side, self.side) + picture.tobytes()
            caption = "half \udc80" if order == "caption" else f"picture {key}"
            meta = {"odd": float("nan")} if order == "meta" else {}
            yield SourceItem(key=key, uri=key, original=data, nodes={"image": data}, caption=caption, meta=meta)


@dataclass(frozen=True, kw_only=True)
class Misbehaving(Annotator):
    """Does what the test orders for its tag on given keys, and when its `model` is loaded."""

    makes: ClassVar[tuple[str, ...]] = ("caption",)
    tag: str

    def load(self, device: str) -> None:
        misbehave(orders(self.tag + "-load").get("model"))

    def annotate(self, batch: Sequence[Request], model: Any) -> list[Any]:
        return [self._one(request) for request in batch]

    def _one(self, request: Request) -> Any:
        log(self.tag + "-annotator", request.item.key)
        match order := orders(self.tag + "-annotator").get(request.item.key):
            case "skip_number":
                return Skip(5)  # type: ignore[arg-type]
            case "no_nodes":
                return Derived(None)  # type: ignore[arg-type]
            case "odd_reason":
                return UnusableImage(5)  # type: ignore[arg-type]
            case "surrogate_node":
                return Derived({"caption": "half \udc80"})
        misbehave(order)
        return Derived({"caption": request.item.key}, attrs={"odd": "half \udc80"} if order == "attrs" else None)


def rated(photos: Path, folder: Path, count: int) -> Path:
    """The first photographs, copied to a new folder, each with the rating that a `reference` is trained with."""
    folder.mkdir()
    files = sorted(photos.iterdir())[:count]
    for file in files:
        shutil.copy(file, folder)
    facts = [{"file_name": file.name, "quality_assessment": {"objectConsistency": 3}} for file in files]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, facts)))
    return folder

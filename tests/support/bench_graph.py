"""A graph of encoded crops of photographs, ten kinds an item, which the benchmark of the loader reads."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from graphbuild.contracts import (
    CommitDocument,
    GraphDocument,
    LineageDocument,
    Live,
    Outcome,
    Shard,
    SourceDocument,
    Unit,
)
from graphbuild.engine.commit import publish_unit
from graphbuild.hashing import checksum, version_of
from graphbuild.images.codecs import CODECS
from graphbuild.kinds.registry import kind_of
from graphbuild.store.files import Files
from graphbuild.store.heads import change_head
from graphbuild.store.locations import files_at
from graphbuild.store.parts import write_items
from graphbuild.store.workspace import Workspace

KINDS = ("image", "reference", "style_content", "style_semantic", "edit_global", "normal", "edit_local", "canny",
         "lines", "foreground_mask")  # fmt: skip
SHARD_ITEMS = 128
SIDE = 512


def pictures() -> dict[str, list[bytes]]:
    """Kind -> encoded 512 x 512 crops of photographs, 32 each, as the library would store them."""
    photos = list(crops(32))
    return {kind: [_encoded(kind, photo) for photo in photos] for kind in KINDS}


def crops(count: int) -> Iterator[np.ndarray]:
    import skimage
    from PIL import Image

    names = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png", "ihc.png")
    rng = np.random.default_rng(0)
    for number in range(count):
        with Image.open(Path(skimage.__file__).parent / "data" / names[number % len(names)]) as photo:
            edge = int(rng.integers(200, min(photo.size)))
            left, top = (int(rng.integers(0, side - edge + 1)) for side in photo.size)
            crop = photo.convert("RGB").resize((SIDE, SIDE), box=(left, top, left + edge, top + edge))
        yield np.asarray(crop)


def _encoded(kind: str, crop: np.ndarray) -> bytes:
    codec = kind_of(kind).codec
    assert codec is not None
    if codec == "source":
        codec = "jpeg"
    edges = cv2.Canny(crop, 100, 200)
    return CODECS[codec].encode(edges if codec == "png1" else crop).data


def write_graph(out: Path, num_shards: int, patterns: dict[str, list[bytes]]) -> None:
    files = files_at(out)
    workspace = Workspace.create(files, "bench")
    document = GraphDocument(source=SourceDocument(name="bench", params={}), shard_size=SHARD_ITEMS)
    files.publish("graph.json", document.model_dump_json().encode(), workspace)
    codecs = {kind: kind_of(kind).codec or "" for kind in KINDS}
    lineage = LineageDocument(annotator="source:bench", code_version=1, params={}, model=None, codec=codecs,
                              schema_version=1, parents={})  # fmt: skip
    version = version_of(lineage)
    files.publish(f"lineage/{version}.json", lineage.model_dump_json().encode(), workspace)
    live = Live(annotator="source:bench", version=version)
    change_head(files, workspace, lambda head: dict.fromkeys(KINDS, live))
    for index in range(num_shards):
        shard = Shard(index=index, start=index * SHARD_ITEMS, stop=(index + 1) * SHARD_ITEMS)
        _write_shard(files, workspace, Unit(annotator="source:bench", version=version, shard=shard), lineage, patterns)
    workspace.close()
    os.sync()  # or writing back would slow down the first round


def _write_shard(
    files: Files, workspace: Workspace, unit: Unit, lineage: LineageDocument, patterns: dict[str, list[bytes]]
) -> None:
    numbers = range(unit.shard.start, unit.shard.stop)
    rows = [_row(item_ix, kind, patterns[kind]) for item_ix in numbers for kind in sorted(KINDS)]
    items = [{"item_ix": item_ix, "item_id": f"{item_ix:032x}", "key": str(item_ix)} for item_ix in numbers]
    document = CommitDocument(
        unit=unit,
        revision=0,
        use="bench",
        config={},
        lineage=lineage,
        variants=dict.fromkeys(KINDS, 1),
        parents=[],
        items=write_items(files, workspace, unit, items),
        parts=[],
        counts={},
        reasons={},
        rows_digest="",
    )
    publish_unit(files, workspace, rows=rows, previous=None, document=document)


def _row(item_ix: int, kind: str, patterns: Sequence[bytes]) -> Outcome:
    data = patterns[(item_ix * 7 + len(kind)) % len(patterns)]
    form = "png" if data.startswith(b"\x89PNG") else "jpeg"
    return Outcome(item_ix=item_ix, item_id=f"{item_ix:032x}", kind=kind, variant=0, status="ok", format=form,
                   width=SIDE, height=SIDE, content_hash=checksum(data), seed=0, data=data)  # fmt: skip

"""The layouts: how one shard of items is written, and what is written when all are done."""

from __future__ import annotations

import io
import json
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from graphbuild.hashing import canonical_json
from graphbuild.images.codecs import DRAWN
from graphbuild.images.node import Node
from graphbuild.store.export import coco
from graphbuild.store.export.items import ExportItem, Selection, file_of, is_text
from graphbuild.store.files import replacing

FACTS = ("item_id", "key", "source", "uri", "licence", "attribution", "split", "group", "caption", "subject")
"""Columns of the items table that go with every item."""

_ROWS_AT_ONCE = 64


class Layout(ABC):
    """One layout in the folder `out`."""

    def __init__(self, selection: Selection, out: Path) -> None:
        self.selection, self.out = selection, out

    @abstractmethod
    def write(self, label: str, items: Iterator[ExportItem]) -> list[str]:
        """Write the items of one shard; names of files, relative to the folder, that are there when it is written.
        Another call replaces them."""

    def finish(self, labels: Sequence[str]) -> None:  # noqa: B027 - not every layout has something to add
        """What is written when every shard is there."""

    def features(self) -> dict[str, Any]:
        """What the card says of the files, as the front matter of a data set of the Hub."""
        return {}


class Folder(Layout):
    """`depth/00000012.png`: a folder for each kind, `metadata.jsonl` as `imagefolder` reads it, COCO JSON of poses and
    boxes, and the names and palettes of label maps."""

    def write(self, label: str, items: Iterator[ExportItem]) -> list[str]:
        rows, annotations = list[dict[str, Any]](), list[dict[str, Any]]()
        for item in items:
            row: dict[str, Any] = {name: item.row[name] for name in FACTS if item.row[name] is not None}
            facts: dict[str, Any] = {}
            for kind, variant, node in _each(item):
                column = f"{kind}_{variant}" if self.selection.variants[kind] > 1 else kind
                facts[column] = self.selection.facts_of(node)
                if is_text(node):
                    row[column] = node.text
                    continue
                data, ending = file_of(node)
                file = f"{column}/{item.name}.{ending}"
                put(self.out / file, data)
                row["file_name" if kind == self.selection.kinds[0] and not variant else f"{column}_file_name"] = file
                if node.codec in DRAWN:
                    row[f"{column}_json"] = node.text
            rows.append({**row, "meta": item.row["meta"], "nodes": canonical_json(facts)})
            annotations += coco.annotations_of(item)
        notes = {f".shards/{label}.coco.jsonl": annotations, f".shards/{label}.jsonl": rows}
        for name, found in notes.items():
            put(self.out / name, lines(found))
        return list(notes)  # written when all pictures are: to name those would take longer than to copy them

    def finish(self, labels: Sequence[str]) -> None:
        rows = [row for label in labels for row in read_lines(self.out / f".shards/{label}.jsonl")]
        columns = list(dict.fromkeys(name for row in rows for name in row))
        if all(list(row) == columns for row in rows):  # as they were written
            whole = b"".join((self.out / f".shards/{label}.jsonl").read_bytes() for label in labels)
        else:
            whole = lines([{name: row.get(name) for name in columns} for row in rows])
        put(self.out / "metadata.jsonl", whole)
        found = [each for label in labels for each in read_lines(self.out / f".shards/{label}.coco.jsonl")]
        sizes = {row["item_id"]: row for row in self.selection.rows}
        names = sorted({each["file"] for each in found if "caption" not in each})
        images = [_coco_image(sizes[row["item_id"]], row["file_name"]) for row in rows] if names else []
        for name in names:
            self._document(name, images, found)

    def _document(self, name: str, images: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Any]]) -> None:
        about = [{key: each[key] for key in each if key != "file"} for each in found if each["file"] == name]
        put(self.out / f"annotations/{name}.json", json.dumps(coco.document(images, about)).encode())


class Coco(Folder):
    """COCO: pictures in folders, and a JSON file each for boxes, poses, label maps and captions in `annotations/`."""

    def finish(self, labels: Sequence[str]) -> None:
        super().finish(labels)
        rows = [row for label in labels for row in read_lines(self.out / f".shards/{label}.jsonl")]
        found = [each for label in labels for each in read_lines(self.out / f".shards/{label}.coco.jsonl")]
        sizes = {row["item_id"]: row for row in self.selection.rows}
        images = [_coco_image(sizes[row["item_id"]], row["file_name"]) for row in rows]
        for name in sorted({each["file"] for each in found if "caption" in each}):
            self._document(name, images, found)


class WebDataset(Layout):
    """`shard-00000.tar` with `00000012.image.jpg`, `00000012.depth.png`, `00000012.json`."""

    def write(self, label: str, items: Iterator[ExportItem]) -> list[str]:
        name = f"{label}.tar"
        with replacing(self.out / name) as file, tarfile.open(fileobj=file, mode="w") as archive:
            for item in items:
                about = {name: item.row[name] for name in FACTS} | {"meta": item.meta, "nodes": {}}
                for kind, variant, node in _each(item):
                    column = f"{kind}_{variant}" if self.selection.variants[kind] > 1 else kind
                    about["nodes"][column] = self.selection.facts_of(node)
                    data, ending = file_of(node)
                    _member(archive, f"{item.name}.{column}.{ending}", data)
                    if node.codec in DRAWN:
                        _member(archive, f"{item.name}.{column}.json", node.bytes)
                _member(archive, f"{item.name}.json", canonical_json(about).encode())
        return [name]


class Datasets(Layout):
    """Parquet for `datasets`: a column of pictures for each kind, a list of them where it has variants, texts, and the
    values of poses and boxes as JSON beside the drawn picture."""

    def write(self, label: str, items: Iterator[ExportItem]) -> list[str]:
        name, schema = f"data/{label}.parquet", self._schema()
        (self.out / "data").mkdir(exist_ok=True)
        with replacing(self.out / name) as file, pq.ParquetWriter(file, schema, use_dictionary=list(FACTS)) as writer:
            rows = []
            for item in items:
                rows.append(self._row(item))
                if len(rows) == _ROWS_AT_ONCE:
                    writer.write_table(pa.Table.from_pylist(rows, schema))
                    rows = []
            if rows:
                writer.write_table(pa.Table.from_pylist(rows, schema))
        return [name]

    def features(self) -> dict[str, Any]:
        return {"configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "data/*.parquet"}]}]}

    def columns(self) -> dict[str, tuple[pa.DataType, Any]]:
        """Column -> its Arrow type and its feature of `datasets`."""
        image = (pa.struct([("bytes", pa.binary()), ("path", pa.string())]), {"_type": "Image"})
        text = (pa.string(), {"dtype": "string", "_type": "Value"})
        found: dict[str, tuple[pa.DataType, Any]] = dict.fromkeys(FACTS, text)
        for kind in self.selection.kinds:
            codec = self.selection.codec(kind)
            of_kind = {kind: text if codec in ("text", "json") else image}
            of_kind |= {f"{kind}_json": text} if codec in DRAWN else {}
            for name, (dtype, feature) in of_kind.items():
                many = self.selection.variants[kind] > 1
                found[name] = (pa.list_(dtype), {"feature": feature, "_type": "List"}) if many else (dtype, feature)
        return {**found, "meta": text, "nodes": text}

    def _schema(self) -> pa.Schema:
        columns = self.columns()
        features = {name: feature for name, (_, feature) in columns.items()}
        metadata = {"huggingface": json.dumps({"info": {"features": features}})}
        return pa.schema([(name, dtype) for name, (dtype, _) in columns.items()], metadata=metadata)

    def _row(self, item: ExportItem) -> dict[str, Any]:
        row: dict[str, Any] = {name: item.row[name] for name in FACTS}
        facts = {}
        for kind, nodes in item.nodes.items():
            facts[kind] = [None if node is None else self.selection.facts_of(node) for node in nodes]
            many = self.selection.variants[kind] > 1
            values = [None if node is None else _cell(node, f"{item.name}-{at}") for at, node in enumerate(nodes)]
            row[kind] = values if many else values[0]
            if self.selection.codec(kind) in DRAWN:
                texts = [None if node is None else node.text for node in nodes]
                row[f"{kind}_json"] = texts if many else texts[0]
        return {**row, "meta": item.row["meta"], "nodes": canonical_json(facts)}


def _cell(node: Node, name: str) -> Any:
    if is_text(node):
        return node.text
    data, ending = file_of(node)
    return {"bytes": data, "path": f"{name}.{ending}"}


def _each(item: ExportItem) -> Iterator[tuple[str, int, Node]]:
    for kind, nodes in item.nodes.items():
        for variant, node in enumerate(nodes):
            if node is not None:
                yield kind, variant, node


def _coco_image(row: Mapping[str, Any], file: str) -> dict[str, Any]:
    return {"id": row["item_ix"], "file_name": file, "width": row["width"], "height": row["height"]}


def _member(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def lines(rows: Sequence[Mapping[str, Any]]) -> bytes:
    return "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows).encode()


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def put(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except FileNotFoundError:  # its folder: asked for once, not for every file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

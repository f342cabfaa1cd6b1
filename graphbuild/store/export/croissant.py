"""Croissant metadata (MLCommons, version 1.0) of a folder of Parquet files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from graphbuild.store.export.layouts import Datasets

_TERMS = (
    *("citeAs", "column", "conformsTo", "data", "dataType", "equivalentProperty", "examples", "extract", "field"),
    *("fileProperty", "fileObject", "fileSet", "format", "includes", "isLiveDataset", "jsonPath", "key", "md5"),
    *("parentField", "path", "recordSet", "references", "regex", "repeated", "replace", "separator", "source"),
    *("subField", "transform"),
)
_CONTEXT: Mapping[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "dct": "http://purl.org/dc/terms/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "sc": "https://schema.org/",
    **{term: f"cr:{term}" for term in _TERMS},
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
}


class Croissant(Datasets):
    """The layout of `Datasets` with `croissant.json` beside it: files with their sha256, and every column."""

    def finish(self, labels: Sequence[str]) -> None:
        files = [_file(self.out, f"data/{label}.parquet") for label in labels]
        (self.out / "croissant.json").write_text(json.dumps(self._document(files), indent=2) + "\n", encoding="utf-8")

    def _document(self, files: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        licences = sorted({row["licence"] for row in self.selection.rows if row["licence"]})
        whole = {"@type": "cr:FileSet", "@id": "tables", "name": "tables", "encodingFormat": "application/x-parquet",
                 "includes": "data/*.parquet", "containedIn": [{"@id": file["@id"]} for file in files]}  # fmt: skip
        fields = [self._field(name, feature) for name, (_, feature) in self.columns().items()]
        return {
            "@context": _CONTEXT,
            "@type": "sc:Dataset",
            "conformsTo": "http://mlcommons.org/croissant/1.0",
            "name": self.out.name,
            "description": f"Images and their annotations: {', '.join(self.selection.kinds)}.",
            "url": self.out.resolve().as_uri(),
            "version": "1.0.0",
            "license": licences or ["unknown"],
            "distribution": [*files, whole],
            "recordSet": [{"@type": "cr:RecordSet", "@id": "items", "name": "items", "field": fields}],
        }

    def _field(self, name: str, feature: Any) -> dict[str, Any]:
        many = feature["_type"] == "List"
        inner = feature["feature"] if many else feature
        picture = inner["_type"] == "Image"
        return {
            "@type": "cr:Field", "@id": f"items/{name}", "name": name, "repeated": many,
            "dataType": "sc:ImageObject" if picture else "sc:Text",
            "source": {"fileSet": {"@id": "tables"}, "extract": {"column": name}},
        }  # fmt: skip


def _file(out: Path, name: str) -> dict[str, Any]:
    with open(out / name, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "@type": "cr:FileObject", "@id": name, "name": name, "contentUrl": name, "sha256": digest,
        "encodingFormat": "application/x-parquet", "contentSize": f"{(out / name).stat().st_size} B",
    }  # fmt: skip

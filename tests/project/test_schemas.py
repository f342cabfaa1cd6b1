"""The published contracts are the ones the code obeys."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import TypeAdapter

from graphbuild.cli.schema import schema_files
from graphbuild.contracts import ARROW_SCHEMAS, JSON_DOCUMENTS
from graphbuild.store.graph import Graph
from tests.support.annotators import build, complete

FOLDER = Path(__file__).parents[2] / "schemas" / "v1"


def test_schema_files_are_up_to_date() -> None:
    """A changed contract needs `graphbuild schema --write schemas/`; a removed one must not linger."""
    found = {file.name: file.read_text() for file in FOLDER.iterdir()}
    assert found == schema_files()


def test_every_field_is_nullable() -> None:
    """`datasets` hands out raw bytes instead of pictures as soon as one field is not nullable."""

    def check(field: pa.Field, name: str) -> None:
        assert field.nullable, name
        for at in range(field.type.num_fields):
            check(field.type.field(at), f"{name}.{field.type.field(at).name}")

    for name, schema in ARROW_SCHEMAS.items():
        for field in schema:
            check(field, f"{name}.{field.name}")


def test_columns_do_not_repeat_folder_names() -> None:
    """A column called like a hive folder makes DuckDB and Polars refuse the dataset."""
    for name in ("nodes", "edges", "items"):
        folders = {"nodes": {"kind", "version"}, "edges": {"annotator", "version"}, "items": set()}[name]
        assert not folders & set(ARROW_SCHEMAS[name].names), name


@pytest.fixture(scope="module")
def graph(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Graph:
    out = tmp_path_factory.mktemp("schemas") / "g"
    complete(build(photos, out, ["canny", "source_caption"], limit=3))
    return Graph.open(out)


def test_parts_have_the_published_columns(graph: Graph) -> None:
    """A reader written from schemas/v1 alone must find exactly these columns."""
    parts = {"nodes": graph.files("canny"), "items": graph.files("items"), "edges": graph.files("edges")}
    parts["snapshot"] = [str(file) for file in Path(graph.url, "snapshots").iterdir()]
    for what, files in parts.items():
        published = json.loads((FOLDER / f"{what}.arrow.json").read_text())["fields"]
        assert files, what
        for file in files:
            schema = pq.read_schema(file)
            found = [{"name": f.name, "type": str(f.type), "nullable": f.nullable} for f in schema]
            assert found == published, file


def test_documents_obey_the_published_schemas(graph: Graph) -> None:
    """graph.json, heads, lineage, reports and commit footers are read by other programs."""
    jsonschema = pytest.importorskip("jsonschema")
    root = Path(graph.url)
    texts = {
        "graph": [(root / "graph.json").read_text()],
        "lineage": [file.read_text() for file in (root / "lineage").iterdir()],
        "report": [file.read_text() for file in root.glob("runs/*/report.json")],
        "commit": [pq.read_schema(file).metadata[b"graphbuild"].decode() for file in graph.files("edges")],
        "live": [json.dumps(live) for f in (root / "heads").iterdir() for live in json.loads(f.read_text()).values()],
    }
    for what, documents in texts.items():
        schema = json.loads((FOLDER / f"{what}.schema.json").read_text())
        assert documents, what
        for text in documents:
            jsonschema.validate(json.loads(text), schema)
            TypeAdapter(JSON_DOCUMENTS[what]).validate_json(text)

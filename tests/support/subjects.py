"""Parquet shards in the shape of Subjects200K."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

QUALITY = {"compositeStructure": 5, "objectConsistency": 4, "imageQuality": 5}


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def canvas(left: Image.Image, right: Image.Image, padding: int) -> Image.Image:
    side = left.width
    whole = Image.new("RGB", (2 * side + 3 * padding, side + 2 * padding), (7, 90, 200))
    whole.paste(left, (padding, padding))
    whole.paste(right, (side + 2 * padding, padding))
    return whole


def row(data: bytes | None, collection: str = "collection_1", quality: Any = QUALITY, **texts: Any) -> dict[str, Any]:
    description = {
        "item": "Cat",
        "description_0": "a cat on a sofa",
        "description_1": "a cat in a garden",
        "category": "animal",
        "description_valid": True,
    }
    return {
        "image": {"bytes": data, "path": None},
        "collection": collection,
        "quality_assessment": quality,
        "description": description | texts,
    }


def parquet(rows: list[dict[str, Any]], row_group_size: int = 2, drop: Sequence[str] = ()) -> bytes:
    scores = pa.struct([(name, pa.int64()) for name in QUALITY])
    texts = [(name, pa.string()) for name in ("item", "description_0", "description_1", "category")]
    schema = pa.schema(
        [
            ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            ("collection", pa.string()),
            ("quality_assessment", scores),
            ("description", pa.struct([*texts, ("description_valid", pa.bool_())])),
        ]
    )
    sink = io.BytesIO()
    table = pa.Table.from_pylist(rows, schema).drop_columns(drop)
    pq.write_table(table, sink, row_group_size=row_group_size, write_batch_size=1, write_page_checksum=True)
    return sink.getvalue()

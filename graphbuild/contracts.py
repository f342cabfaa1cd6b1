"""Records and Arrow schemas of graph format 1; `schemas/v1` is generated from here. Imports nothing of ours."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt

FORMAT = 1
FEATURES: tuple[str, ...] = ()
"""Format extensions this library understands; a graph that lists another one is refused."""

MAX_PIXELS = 100_000_000
MAX_BYTES = 200_000_000
"""Limits on an untrusted image, checked on its header before anything is decoded."""

Status = Literal["ok", "skipped", "failed"]

FINAL_REASONS = frozenset(
    {"undecodable", "damaged", "too_many_scans", "empty_file", "too_large", "unsupported_mode", "bad_geometry"}
    | {"bad_values"}
)
"""Failures that the input itself causes: never retried, never counted against an annotator."""


# Names that are folders of a graph, or parts of file names. Documents from elsewhere cannot lead out of it by them.
KindName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*$", max_length=200)]
ProducerName = Annotated[str, Field(pattern=r"^(source:)?\w[\w.-]*$", max_length=200)]
Version = Annotated[str, Field(pattern=r"^v[0-9a-f]{1,12}$")]


class Document(BaseModel):
    """Base of the JSON documents: immutable, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Shard(Document):
    """The range [start, stop) of `item_ix` that one unit covers."""

    index: NonNegativeInt
    start: NonNegativeInt
    stop: NonNegativeInt

    @property
    def label(self) -> str:
        return f"shard-{self.index:05d}"


class Unit(Document):
    """(annotator, version, shard): the unit of work, commit and resume."""

    annotator: ProducerName
    version: Version
    shard: Shard

    def __str__(self) -> str:
        return f"{self.annotator} {self.version} {self.shard.label}"


class CommitRef(Document):
    """One revision of one unit, pinned by the checksum of its edges part's footer."""

    annotator: ProducerName
    version: Version
    shard: NonNegativeInt
    revision: NonNegativeInt
    checksum: str


class PartRef(Document):
    """A published Parquet file: its graph-relative name, its row count, size and xxh3_128."""

    name: str
    kind: KindName
    rows: NonNegativeInt
    nbytes: NonNegativeInt
    checksum: str


class SourceDocument(Document):
    name: ProducerName
    params: dict[str, Any]


class GraphDocument(Document):
    """`graph.json`: written once, never changed."""

    format: int = FORMAT
    features: list[str] = Field(default_factory=list)
    source: SourceDocument
    shard_size: int


class Live(Document):
    """The (annotator, version) that serves one kind."""

    annotator: ProducerName
    version: Version


class LineageDocument(Document):
    """`lineage/<version>.json`: exactly what the version is a hash of."""

    annotator: ProducerName
    code_version: int
    params: dict[str, Any]
    model: str | None
    codec: dict[KindName, str]
    schema_version: int
    parents: dict[KindName, Version]
    author: str | None = Field(None, exclude_if=lambda name: name is None, description="who wrote it: not for ours")


class CommitDocument(Document):
    """The `graphbuild` key in the footer of an edges part: everything a planner or verifier asks of a unit."""

    format: int = FORMAT
    unit: Unit
    revision: NonNegativeInt
    use: str = Field(description="how to find the annotator class again: a short name or module:Class")
    config: dict[str, Any] = Field(description="every parameter, also those that are not in the version")
    lineage: LineageDocument
    variants: dict[KindName, NonNegativeInt] = Field(description="planned variants of each made kind")
    parents: list[CommitRef] = Field(description="the parents' commits this one was computed from")
    items: PartRef | None = Field(default=None, description="the items part; sources only")
    parts: list[PartRef]
    counts: dict[str, dict[Status, int]]
    reasons: dict[str, dict[str, int]] = Field(description="kind -> reason -> rows, for rows that are not ok")
    rows_digest: str = Field(description="xxh3_128 of the edge rows, so that the footer alone pins them")
    erases: NonNegativeInt | None = Field(
        default=None,
        exclude_if=lambda number: number is None,
        description="revision repeated without excluded items, by gc",
    )

    @property
    def retriable_rows(self) -> int:
        """Number of failed rows that may succeed on a retry."""
        final = {f"failed:{reason}" for reason in FINAL_REASONS}
        return sum(
            count
            for reasons in self.reasons.values()
            for reason, count in reasons.items()
            if reason.startswith("failed:") and reason not in final
        )


class AnnotatorReport(Document):
    """What one annotator did in one run."""

    units: int = 0
    ok: int = 0
    skipped: int = 0
    failed: int = 0
    reused: int = 0
    reasons: dict[str, int] = Field(default_factory=dict)
    nbytes: int = 0
    seconds: float = 0.0
    annotate_seconds: float = 0.0


class RunReport(Document):
    """`runs/<run_id>/report.json`: the outcome of one run."""

    run_id: str
    graph: str
    command: list[str]
    source_args: dict[str, Any]
    started: str
    seconds: float
    executor: str
    annotators: dict[str, AnnotatorReport]
    units_wanted: int
    units_done: int
    units_left: list[str]
    items_per_second: float
    annotator_share: float = Field(description="share of worker time spent inside annotators, 0..1")
    errors: list[str]
    went_live: dict[str, Live] = Field(default_factory=dict, description="kinds that another version serves now")
    failed: int = Field(description="failed rows in the graph")
    retriable: int = Field(description="failed rows in the graph that may succeed another time")
    snapshot: str | None

    def _repr_html_(self) -> str:
        """For notebooks: what each annotator did."""
        names = ("units", "ok", "skipped", "failed", "reused")
        rows = [(html.escape(name), *(getattr(did, key) for key in names)) for name, did in self.annotators.items()]
        lines = [f"<tr>{''.join(f'<td>{value}</td>' for value in row)}</tr>" for row in [("annotator", *names), *rows]]
        told = f"{html.escape(self.graph)}: {self.units_done} of {self.units_wanted} units in {self.seconds:.1f} s"
        return f"<p>{told}</p><table>{''.join(lines)}</table>"


class StatusDocument(Document):
    """`graphbuild status --json`."""

    graph: str
    items: int
    kinds: dict[str, dict[Status, int]]
    units: dict[Literal["done", "wanted"], int]
    reasons: dict[str, dict[str, int]]
    live: dict[str, Live]
    not_live: list[str] = Field(description="versions with commits that no kind is served by")
    retriable: int
    snapshot: str
    params: dict[str, dict[str, Any]] = Field(default_factory=dict, description="of each version, live or not")
    gaps: list[str] = Field(default_factory=list, description="units of live versions that are not committed")
    excluded: int = Field(0, description="items that are never sampled nor read")
    saved: dict[str, int] = Field(default_factory=dict, description="rows of unfinished units, by version")
    nbytes: dict[str, int] = Field(default_factory=dict, description="of the parts of each live kind")
    scores: dict[str, list[int]] = Field(default_factory=dict, description="live score: its histogram, 10 bins, 0 to 1")


class CellDocument(Document):
    kind: str
    variant: int
    version: str


class WalkDocument(Document):
    """One line of a walks file: ids only, enough to draw the same grid again."""

    index: int
    seed: int
    path_repeat: int = Field(description="consecutive tasks that share a path and a number of rows")
    snapshot: str
    paths: str = Field(description="the task list drawn from")
    paths_digest: str = Field(description="what was in that list")
    path: str
    type: str
    rows: list[int] = Field(description="item_ix of each row, the query row last")
    seeds: list[int] = Field(description="seed of the computed cells of each row")
    cells: list[list[CellDocument]]
    holes: list[int] = Field(description="columns of the query row that are to be generated")
    resolution: int
    switches: dict[str, Any] = Field(description="how cells were made, and the sampler's settings off their default")
    instruction: str = Field(description="the words in training, some left out by chance")
    instruction_full: str = Field(description="the same with nothing left out")


class Parent(NamedTuple):
    """A node that another was made from, with its hash at that time."""

    item_ix: int
    kind: str
    variant: int
    version: str
    content_hash: str


class Item(NamedTuple):
    """What an annotator may know of an item, taken from its items row."""

    item_ix: int
    item_id: str
    key: str
    caption: str | None
    reference_caption: str | None
    subject: str | None
    category: str | None
    meta: str | None


def encodable(text: str | None) -> str | None:
    """A text that UTF-8 can hold: a lone surrogate becomes `?`."""
    return None if text is None else text.encode("utf-8", "replace").decode()


def _printable(text: str | None) -> str | None:
    if text is None or text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


@dataclass(slots=True)
class Outcome:
    """One planned node and what became of it: an edge row, plus its bytes on their way to a node part and, from a
    source, its items row (JSON). Texts are untrusted and made fit to store."""

    item_ix: int
    item_id: str
    kind: str
    variant: int
    status: Status
    reason: str | None = None
    detail: str | None = None
    parents: tuple[Parent, ...] = ()
    format: str | None = None
    width: int | None = None
    height: int | None = None
    content_hash: str | None = None
    score: float | None = None
    seed: int | None = None
    attrs: str | None = None
    data: bytes | pa.Buffer | None = None
    item: str | None = None

    def __post_init__(self) -> None:
        self.reason, self.detail = _printable(self.reason), _printable(self.detail)
        self.attrs = encodable(self.attrs)

    @property
    def key(self) -> tuple[int, str, int]:
        return (self.item_ix, self.kind, self.variant)

    @property
    def retriable(self) -> bool:
        """Whether it failed for a reason that may be transient."""
        return self.status == "failed" and self.reason not in FINAL_REASONS


PARENT = pa.struct(
    [("item_ix", pa.int64()), ("kind", pa.string()), ("variant", pa.int32()), ("version", pa.string()),
     ("content_hash", pa.string())]
)  # fmt: skip

_EDGE_HEAD: list[tuple[str, pa.DataType]] = [
    ("item_ix", pa.int64()), ("kind", pa.string()), ("variant", pa.int32()), ("status", pa.string()),
    ("reason", pa.string()), ("detail", pa.string()), ("parents", pa.list_(pa.field("element", PARENT))),
]  # fmt: skip
_EDGE_TAIL: list[tuple[str, pa.DataType]] = [
    ("format", pa.string()), ("width", pa.int32()), ("height", pa.int32()), ("content_hash", pa.string()),
    ("score", pa.float64()), ("seed", pa.int64()), ("attrs", pa.string()),
]  # fmt: skip

EDGES = pa.schema([*_EDGE_HEAD, ("part", pa.string()), ("offset", pa.int64()), ("nbytes", pa.int64()), *_EDGE_TAIL])
"""One row per planned node of a unit, in (item_ix, kind, variant) order."""

SPOOL = pa.schema([*_EDGE_HEAD, *_EDGE_TAIL, ("item_id", pa.string()), ("data", pa.binary()), ("item", pa.string())])
"""Finished outcomes of a unit that is still under way."""

ITEMS = pa.schema(
    [
        ("item_ix", pa.int64()),
        ("item_id", pa.string()),
        ("key", pa.string()),
        ("source", pa.string()),
        ("uri", pa.string()),
        ("stamp", pa.string()),
        ("sha256", pa.string()),
        ("phash", pa.int64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("licence", pa.string()),
        ("attribution", pa.string()),
        ("split", pa.string()),
        ("group", pa.string()),
        ("caption", pa.string()),
        ("reference_caption", pa.string()),
        ("subject", pa.string()),
        ("category", pa.string()),
        ("meta", pa.string()),
    ]
)
"""The spine: one row per item."""

SNAPSHOT = pa.schema(
    [
        ("annotator", pa.string()),
        ("version", pa.string()),
        ("shard", pa.int32()),
        ("revision", pa.int32()),
        ("checksum", pa.string()),
    ]
)
"""The newest commit of every unit; the head is in the footer under `graphbuild`."""

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def _nodes_schema() -> pa.Schema:
    fields = [
        ("item_ix", pa.int64()),
        ("item_id", pa.string()),
        ("variant", pa.int32()),
        ("image", IMAGE),
        ("payload", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
    ]
    features: dict[str, Mapping[str, str]] = {
        name: {"_type": "Image"} if name == "image" else {"dtype": str(dtype), "_type": "Value"}
        for name, dtype in fields
    }
    return pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": features}})})


NODES = _nodes_schema()
"""Stored pixels or payload. All fields nullable: `datasets` honours its feature metadata only then."""

ARROW_SCHEMAS = {"items": ITEMS, "nodes": NODES, "edges": EDGES, "spool": SPOOL, "snapshot": SNAPSHOT}
JSON_DOCUMENTS: Mapping[str, type[Document]] = {
    "graph": GraphDocument, "live": Live, "lineage": LineageDocument, "commit": CommitDocument, "report": RunReport,
    "status": StatusDocument, "walk": WalkDocument,
}  # fmt: skip

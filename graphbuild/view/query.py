"""Which nodes a page of the grid shows: filters, order, and where the next page goes on.

A page costs what is on it: units are read in order until it is full, those without such rows are passed over by their
counts, and a search that finds little stops after a moment and says how far it came.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, NamedTuple, get_args
from urllib.parse import urlencode

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from graphbuild.contracts import Shard, Status
from graphbuild.errors import GraphError
from graphbuild.view.look import Look

Order = Literal["item", "score", "-score", "near"]
_COLUMNS = ["item_ix", "kind", "variant", "status", "reason", "detail", "score", "width", "height"]
_SEARCHED = ("key", "caption", "subject", "category", "item_id")
_SECONDS = 0.8  # of a search that finds little


@dataclass(frozen=True, kw_only=True)
class Query:
    """Filters and order of a grid; the empty text is any.

    Attributes:
        kind: whose nodes are shown; empty: those of every kind of the annotator.
        annotator: what makes them, by its live versions.
        status: `ok`, `skipped` or `failed`.
        reason: of a node that is not ok.
        split: the source's own.
        text: a part of key, caption, subject, category or id.
        low, high: bounds of the score.
        order: by `item`, `score` (lowest first), `-score`, or `near`: nearly equal pictures beside each other.
    """

    kind: str = "image"
    annotator: str = ""
    status: str = ""
    reason: str = ""
    split: str = ""
    text: str = ""
    low: float | None = None
    high: float | None = None
    order: Order = "item"

    @classmethod
    def of(cls, given: Mapping[str, str], kinds: Sequence[str], annotators: Sequence[str] = ()) -> Query:
        """The query that the parameters of an address state.

        Args:
            kinds, annotators: those of the graph.

        Raises:
            GraphError: a value that is not allowed; the message says what is.
        """
        names = {field.name for field in fields(cls)}
        values: dict[str, Any] = {name: value for name, value in given.items() if name in names and value}
        values.setdefault("kind", "" if "annotator" in values else [*kinds, cls.kind][0])
        allowed: dict[str, Sequence[str]] = {
            "kind": kinds, "annotator": annotators, "status": get_args(Status), "order": get_args(Order)
        }  # fmt: skip
        for name, choices in allowed.items():
            if given.get(name) and values[name] not in choices:
                raise GraphError(f"{name} {values[name]!r}; allowed: {', '.join(choices)}")
        values |= {name: _number(name, values[name]) for name in ("low", "high") if name in values}
        return cls(**values)

    def address(self, **changes: Any) -> str:
        """The query as parameters of an address, those off their default."""
        wanted = replace(self, **changes)
        defaults = {f.name: f.default for f in fields(self)} | ({"kind": ""} if wanted.annotator else {})
        return urlencode({name: value for name in defaults if (value := getattr(wanted, name)) != defaults[name]})

    def kinds(self, look: Look) -> list[str]:
        """Whose nodes are shown."""
        if not self.annotator:
            return [self.kind]
        return [kind for kind in look.made_by(self.annotator) if self.kind in ("", kind)]


class Hit(NamedTuple):
    """A node of a page, and what the spine says of its item."""

    item_ix: int
    kind: str
    variant: int
    status: str
    reason: str | None
    detail: str | None
    score: float | None
    width: int | None
    height: int | None
    facts: Mapping[str, Any]


class Page(NamedTuple):
    """Nodes in order.

    Attributes:
        after: where the next page begins, for `find`; empty at the end.
        searched: how many items have been looked at, if the search stopped before the page was full.
    """

    hits: list[Hit]
    after: str
    searched: int | None = None


class _Place(NamedTuple):
    """The last node of a page."""

    item_ix: int
    variant: int
    kind: str


def find(look: Look, query: Query, after: str = "", limit: int = 60) -> Page:
    """A page of the nodes that a query asks for.

    Args:
        after: `Page.after` of the page before.

    Raises:
        GraphError: `after` is not of such a page.
    """
    kinds = [kind for kind in map(look.edge_kind, query.kinds(look)) if kind in look.graph.head]
    if not kinds:
        return Page([], "")  # nothing is committed yet
    place = _place(after, kinds)
    if query.order == "item":
        return _by_item(look, query, kinds, place, limit)
    wanted = _scored(look, query, kinds) if query.order != "near" else _near(look, len(kinds))
    return _of_list(look, query, kinds, wanted, start=place.item_ix + 1, limit=limit)


def _by_item(look: Look, query: Query, kinds: list[str], after: _Place, limit: int) -> Page:
    until, tables = time.monotonic() + _SECONDS, list[pa.Table]()
    for shard, units in _units(look, query, kinds, after.item_ix):
        tables.append(_chosen(look, query, shard, units, after))
        if sum(table.num_rows for table in tables) > limit:
            hits = _hits(look, pa.concat_tables(tables).slice(0, limit))
            last = hits[-1]
            return Page(hits, f"{last.item_ix}.{last.variant}" + (f".{last.kind}" if len(kinds) > 1 else ""))
        if time.monotonic() > until:
            return Page(_hits(look, pa.concat_tables(tables)), f"{shard.stop - 1}.{1 << 30}", shard.stop)
    return Page(_hits(look, pa.concat_tables(tables)) if tables else [], "")


def _units(look: Look, query: Query, kinds: list[str], first: int) -> Iterator[tuple[Shard, dict[str, list[str]]]]:
    """The units of each shard that may hold such rows, with the kinds they serve, from the shard of an item on."""
    names = {kind: look.units(kind) for kind in kinds}
    if query.status in ("failed", "skipped") or query.reason:
        having = {kind: look.outcomes.units(kind, query.status, query.reason) for kind in kinds}
        names = {kind: {at: name for at, name in names[kind].items() if name in having[kind]} for kind in kinds}
    for shard in look.shards:
        units: dict[str, list[str]] = {}
        for kind in kinds:
            if (name := names[kind].get(shard.index)) is not None:
                units.setdefault(name, []).append(kind)
        if shard.stop > first and units:
            yield shard, units


def _chosen(look: Look, query: Query, shard: Shard, units: Mapping[str, list[str]], after: _Place) -> pa.Table:
    """The rows of a shard that a query asks for, by item, variant and kind."""
    table = pa.concat_tables([_of_unit(look, query, name, kinds, after) for name, kinds in units.items()])
    if query.text or query.split:
        table = table.filter(pa.array(np.isin(table["item_ix"].to_numpy(), _items(look, query, shard.index))))
    several = sum(map(len, units.values())) > 1
    return table.sort_by([(name, "ascending") for name in ("item_ix", "variant", "kind")]) if several else table


def _of_unit(look: Look, query: Query, name: str, kinds: list[str], after: _Place) -> pa.Table:
    table = look.rows(name, _COLUMNS)
    item_ix, variant = table["item_ix"].to_numpy(), table["variant"].to_numpy()
    later = (variant > after.variant) | ((variant == after.variant) & _true(pc.greater(table["kind"], after.kind)))
    wanted = (item_ix > after.item_ix) | ((item_ix == after.item_ix) & later)
    wanted &= _true(pc.is_in(table["kind"], pa.array(kinds)))
    for column in ("status", "reason"):
        if value := getattr(query, column):
            wanted &= _true(pc.equal(table[column], value))
    if query.kind and query.kind not in look.graph.head:
        wanted &= _true(pc.equal(table["status"], "ok"))
    if query.low is not None:
        wanted &= _true(pc.greater_equal(table["score"], query.low))
    if query.high is not None:
        wanted &= _true(pc.less_equal(table["score"], query.high))
    return table.filter(pa.array(wanted))


def _items(look: Look, query: Query, shard: int) -> Any:
    """The items of a shard with the text and split asked for."""
    facts = look.facts_of_shard(shard)
    wanted = np.ones(facts.num_rows, bool)
    if query.split:
        wanted &= _true(pc.equal(facts["split"], query.split))
    if query.text:
        found = (pc.match_substring(facts[name], query.text, ignore_case=True) for name in _SEARCHED)
        wanted &= np.logical_or.reduce([_true(each) for each in found])
    return facts["item_ix"].filter(pa.array(wanted)).to_numpy()


def _scored(look: Look, query: Query, kinds: list[str]) -> NDArray[np.int64]:
    """item_ix, variant and number of the kind of the nodes with a score in the range, in order."""
    rows = look.scores(*kinds)
    low, high = (-np.inf if query.low is None else query.low), (np.inf if query.high is None else query.high)
    start, stop = np.searchsorted(rows[:, 2], low, "left"), np.searchsorted(rows[:, 2], high, "right")
    chosen = rows[start:stop, [0, 1, 3]].astype(np.int64)
    return chosen[::-1] if query.order == "-score" else chosen


def _near(look: Look, kinds: int) -> NDArray[np.int64]:
    items = np.repeat(look.near_duplicates()[:, 1], kinds)
    return np.stack([items, np.zeros_like(items), np.arange(len(items)) % kinds], axis=1)


def _of_list(look: Look, query: Query, kinds: list[str], wanted: NDArray[np.int64], *, start: int, limit: int) -> Page:
    """A page of a list of nodes, those that the other filters leave."""
    until, hits, at = time.monotonic() + _SECONDS, list[Hit](), start
    while at < len(wanted) and len(hits) < limit and (at == start or time.monotonic() < until):
        item_ix, variant, kind = wanted[at].tolist()
        hits += _one(look, query, kinds[kind], item_ix, variant)
        at += 1
    done, full = at >= len(wanted), len(hits) >= limit
    return Page(hits, "" if done else f"{at - 1}.0", None if done or full else at)


def _one(look: Look, query: Query, kind: str, item_ix: int, variant: int) -> list[Hit]:
    shard = look.graph.shard_of(item_ix)
    if (query.text or query.split) and item_ix not in _items(look, query, shard.index):
        return []
    if shard.index not in look.units(kind):
        return []  # not committed yet
    rows = look.graph.rows(item_ix, kind)
    at = rows.find(item_ix, kind, variant)
    hits = [] if at is None else _hits(look, rows.table.slice(at, 1))
    return [hit for hit in hits if query.status in ("", hit.status) and query.reason in ("", hit.reason)]


def _hits(look: Look, table: pa.Table) -> list[Hit]:
    rows = table.select(_COLUMNS).to_pylist()
    return [Hit(**row, facts=look.facts(row["item_ix"])) for row in rows]


def _true(values: pa.ChunkedArray) -> Any:
    return pc.fill_null(values, False).to_numpy(zero_copy_only=False)


def _place(after: str, kinds: list[str]) -> _Place:
    """Without a kind: behind every kind of that item and variant."""
    item, variant, kind = [*after.split(".", 2), "", ""][:3]
    if after and not (item.isdecimal() and variant.isdecimal()):
        raise GraphError(f"after {after!r}: not a place between two pages; begin at the first page")
    return _Place(int(item), int(variant), kind or max(kinds)) if after else _Place(-1, -1, "")


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise GraphError(f"{name} {text!r}: a score is a number") from None

"""Records exchanged between plan, schedule, executors and workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from traceback import format_exception
from typing import Any, Literal, NamedTuple

from graphbuild.annotators.base import STALL_SECONDS, Annotator, Resources
from graphbuild.contracts import CommitDocument, LineageDocument, Live, Outcome, Shard, Status, Unit
from graphbuild.sources.base import Entry, Source

MOST_FAILURES = 100
"""At most this many failed rows of a unit are listed in its report."""


Death = Literal["killed_worker", "timeout"]
"""How a worker ended: the reason of a row that is given up."""


@dataclass(frozen=True, kw_only=True)
class Producer:
    """An annotator or a source resolved against a graph: lineage, variants, and the versions of its parents."""

    name: str
    version: str
    use: str
    config: dict[str, Any]
    lineage: LineageDocument
    variants: dict[str, int]
    parents: dict[str, Live] = field(default_factory=dict)

    @property
    def live(self) -> Live:
        """The entry of this version in a head."""
        return Live(annotator=self.name, version=self.version)


@dataclass(frozen=True, kw_only=True)
class AnnotateUnit:
    """One unit of an annotator. `deaths` counts workers that died on it: after the first, rows run alone. `died_of` is
    what the last attempt died of; None if it ended otherwise, or its row was not to blame. `after` comes before it
    besides its parents: the source, for an annotator that looks at facts of items.

    A long unit is divided: each `part` makes the rows of these items (`item_ix`) and leaves them in the spool; then the
    unit itself, which `gathers` them, commits. `reuse` is a graph whose nodes are taken where they would be the same.
    """

    annotator: Annotator
    producer: Producer
    unit: Unit
    revision: int
    retry: bool = False
    deaths: int = 0
    died_of: Death | None = None
    after: tuple[Live, ...] = ()
    part: range | None = None
    gathers: bool = False
    reuse: str | None = None


@dataclass(frozen=True, kw_only=True)
class IngestUnit:
    """One unit of a source. `entries` are the items of the shard in order, or None if its items part is published;
    `replaces` are keys whose files changed and were accepted as new items, `revised` those whose facts changed. `gone`
    are listed keys whose files are known to be missing; None: this process knows, it has listed them itself."""

    source: Source
    producer: Producer
    unit: Unit
    revision: int
    entries: tuple[Entry, ...] | None
    replaces: frozenset[str] = frozenset()
    revised: frozenset[str] = frozenset()
    retry: bool = False
    deaths: int = 0
    died_of: Death | None = None
    gone: frozenset[str] | None = None


AnyUnit = AnnotateUnit | IngestUnit


@dataclass(frozen=True)
class PlannedUnit:
    """A unit that has to run, why, and how many rows it plans."""

    work: AnyUnit
    why: str
    rows: int


@dataclass(frozen=True)
class Job:
    """Units of one shard for one worker of `pool`, which needs `resources`; `avoid` names nodes that it failed on."""

    pool: str
    shard: Shard
    units: tuple[AnyUnit, ...]
    resources: Resources = Resources()
    avoid: frozenset[str] = frozenset()

    @property
    def stall_s(self) -> float:
        """Seconds without a finished row after which its worker is taken for stuck."""
        return max(work.annotator.resources.stall_s if isinstance(work, AnnotateUnit) else STALL_SECONDS
                   for work in self.units)  # fmt: skip


class Failure(NamedTuple):
    """A row that failed in this run, for people; `trace` is the Python traceback, if there is one."""

    key: str
    kind: str
    variant: int
    reason: str
    detail: str
    trace: str = ""


@dataclass(kw_only=True)
class UnitReport:
    """What became of a unit: `committed`, `unchanged`, `replan`, or `failed` with an error; of a part of one: `saved`.
    `final` says that trying again would not help, `broken` that the annotator itself is at fault, `device_lost` that
    this process cannot use its GPU any more; `unseen` are listed files that are missing here; `nbytes` is the size of
    its parts."""

    unit: Unit
    revision: int
    status: str = "committed"
    error: str | None = None
    final: bool = False
    broken: bool = False
    device_lost: bool = False
    unseen: tuple[str, ...] = ()
    counts: dict[Status, int] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)
    computed: int = 0
    computed_failed: int = 0
    reused: int = 0
    failures: list[Failure] = field(default_factory=list)
    nbytes: int = 0
    seconds: float = 0.0
    annotate_seconds: float = 0.0

    def failed(self, row: Outcome, key: str, error: BaseException | None = None) -> None:
        """Record a failed row of the item `key`, with the traceback of its exception."""
        if len(self.failures) < MOST_FAILURES:
            trace = "" if error is None else "".join(format_exception(error))[-4000:]
            self.failures.append(Failure(key, row.kind, row.variant, row.reason or "", row.detail or "", trace))

    def settle(self, document: CommitDocument | None, rows: Sequence[Outcome]) -> None:
        """Set the totals from the commit, or from `rows` if nothing was published."""
        if document is None:
            self.status = "unchanged"
        else:
            self.nbytes = sum(part.nbytes for part in document.parts)
        for row in rows:
            self.counts[row.status] = self.counts.get(row.status, 0) + 1
            if row.reason is not None:
                key = f"{row.status}:{row.reason}"
                self.reasons[key] = self.reasons.get(key, 0) + 1

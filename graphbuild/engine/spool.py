"""Finished outcomes of a long unit, kept in `_staging/` so that a killed worker loses about a minute."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import pyarrow as pa
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from graphbuild.contracts import SPOOL, Outcome, Unit
from graphbuild.engine.records import Death
from graphbuild.engine.rows import Key
from graphbuild.errors import Unreachable, writing
from graphbuild.hashing import canonical_json, checksum, digest_of
from graphbuild.store.files import Files, file_checksum
from graphbuild.store.parts import edges_name, outcomes
from graphbuild.store.workspace import Workspace

T = TypeVar("T")

_FOLDER = re.compile("[0-9a-f]{16}")
SPOOL_BYTES = 32 << 20
CAREFUL_FLUSH_SECONDS = 1.0
"""Seconds after which a unit that a worker died on saves its rows, and every unit after a run that was killed."""

CONDEMN_AFTER = 3
_KEY = TypeAdapter(Key)
_DEATHS = TypeAdapter(list[tuple[Key, Death]])

DEADLY = {
    "killed_worker": f"{CONDEMN_AFTER} workers died with only this row in flight",
    "timeout": f"{CONDEMN_AFTER} workers were stuck with only this row in flight",
}
"""Reason -> detail of rows that are given up."""


class _Unit(BaseModel):
    """`unit.json`: the commit that makes its folder obsolete."""

    commit: str = Field(pattern="^edges/annotator=[^/]+/version=[^/]+/[^/]+$")


class Spool:
    """The staging folder of one (unit, revision, what is planned): any run with that digest shares it.

    Args:
        planned: tells what the rows are made from, JSON-ready: keys and parents' hashes, or the files of a source.
        part: tells apart the workers that make parts of the unit at the same time.
    """

    def __init__(  # noqa: PLR0917 - what a spool belongs to
        self,
        files: Files,
        workspace: Workspace,
        unit: Unit,
        revision: int,
        planned: Sequence[object],
        part: str = "",
    ) -> None:
        identity = [unit.model_dump(), revision, planned]
        self.files, self.workspace = files, workspace
        self.folder = f"_staging/{digest_of(identity)}"
        self._alone, self._deaths = f"{self.folder}/alone{part}.json", f"{self.folder}/deaths{part}.json"
        self._unit = {"commit": edges_name(unit, revision)}
        self._waiting: list[Outcome] = []
        self._bytes = 0
        self._count = 0
        self._flushed_at = time.monotonic()

    def load(self) -> list[Outcome]:
        """Every row of every undamaged file; a lost or damaged file is simply computed again."""
        rows: list[Outcome] = []
        for name in self.files.names(self.folder):
            if name.endswith(".arrow"):
                rows.extend(self._load_file(f"{self.folder}/{name}", name.removesuffix(".arrow").rpartition("-")[2]))
        return rows

    def _load_file(self, name: str, expected: str) -> list[Outcome]:
        try:
            data = self.files.map(name)
            return _rows(data) if checksum(memoryview(data))[:16] == expected else []
        except Unreachable:
            raise
        except (OSError, pa.ArrowException):
            return []

    def add(self, rows: Iterable[Outcome], flush_s: float) -> None:
        """Keep finished rows; write them out when `flush_s` seconds or SPOOL_BYTES have gathered."""
        for row in rows:
            self._waiting.append(row)
            self._bytes += len(row.data or b"")
        if time.monotonic() - self._flushed_at >= flush_s or self._bytes >= SPOOL_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write the waiting rows; from then on their bytes are pages of that file, not memory."""
        if self._waiting:
            self._write(self._waiting)
        self._waiting, self._bytes, self._flushed_at = [], 0, time.monotonic()

    def _write(self, rows: list[Outcome]) -> None:
        temp = self.workspace.temp()
        with writing(temp), pa.OSFile(temp, "wb") as sink, pa.ipc.new_file(sink, SPOOL) as writer:
            writer.write_table(spool_table(rows))
        written = _rows(pa.memory_map(temp).read_buffer())
        self._mark()
        digest = file_checksum(temp)[:16]
        name = f"{self.folder}/{self.workspace.name.partition('+')[0]}-{self._count:05d}-r{len(rows)}-{digest}.arrow"
        self.files.publish_file(temp, name)
        self._count += 1
        for row, kept in zip(rows, written, strict=True):
            row.data = kept.data

    def _mark(self) -> None:
        if not self.files.exists(f"{self.folder}/unit.json"):
            self.files.replace(f"{self.folder}/unit.json", canonical_json(self._unit).encode(), self.workspace)

    # ---- rows that kill their worker ---------------------------------------------------------------------------

    def alone(self, key: Key) -> None:
        """Record which row is about to run alone."""
        self._mark()
        self.files.replace(self._alone, json.dumps(key).encode(), self.workspace)

    def condemned(self, reason: Death | None) -> dict[Key, dict[str, str]]:
        """Rows that were alone in flight in CONDEMN_AFTER deaths, with status, reason and detail.

        Args:
            reason: what the last attempt died of; None: it did not, or a node was at fault, and the row that ran alone
                then is not to blame.
        """
        if (key := _read(self.files, self._alone, _KEY)) is not None:
            if reason is not None:
                listed = [*(_read(self.files, self._deaths, _DEATHS) or ()), (key, reason)]
                self.files.replace(self._deaths, json.dumps(listed).encode(), self.workspace)
            self.files.remove(self._alone)
        deaths: dict[Key, list[Death]] = {}
        for name in self.files.names(self.folder):
            if name.startswith("deaths"):
                for key, why in _read(self.files, f"{self.folder}/{name}", _DEATHS) or ():
                    deaths.setdefault(key, []).append(why)
        return {
            key: {"status": "failed", "reason": why[-1], "detail": DEADLY[why[-1]]}
            for key, why in deaths.items()
            if len(why) >= CONDEMN_AFTER
        }

    def close(self) -> None:
        _remove(self.files, self.folder)


def _rows(data: pa.Buffer) -> list[Outcome]:
    table = pa.ipc.open_file(data).read_all()
    return outcomes(table) if table.schema.equals(SPOOL) else []


def spool_table(rows: list[Outcome]) -> pa.Table:
    names = [name for name in SPOOL.names if name not in ("parents", "data")]
    columns: dict[str, list[object]] = {name: [getattr(row, name) for row in rows] for name in names}
    columns["parents"] = [[parent._asdict() for parent in row.parents] for row in rows]
    columns["data"] = [row.data.to_pybytes() if isinstance(row.data, pa.Buffer) else row.data for row in rows]
    return pa.table(columns, schema=SPOOL)


def remove_finished(files: Files, gone: Callable[[str], bool] = lambda commit: False) -> None:
    """Remove staging folders whose unit has been committed since, or whose commit is `gone` for good, and those that do
    not say whose they are; what has no name of ours stays."""
    for folder in filter(_FOLDER.fullmatch, files.names("_staging")):
        unit = _read(files, f"_staging/{folder}/unit.json", TypeAdapter(_Unit))
        if unit is None or files.exists(unit.commit) or gone(unit.commit):
            _remove(files, f"_staging/{folder}")


def _read(files: Files, name: str, shape: TypeAdapter[T]) -> T | None:
    """None if the file is missing or damaged: whatever it said is computed again."""
    try:
        return shape.validate_json(files.read(name))
    except (FileNotFoundError, ValidationError):
        return None


def _remove(files: Files, folder: str) -> None:
    """Remove `unit.json` last: if killed halfway, the next run still knows that the folder is obsolete."""
    for name in files.names(folder):
        if name != "unit.json":
            files.remove(f"{folder}/{name}")
    files.remove(folder)

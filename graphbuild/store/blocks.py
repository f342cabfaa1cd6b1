"""A bounded cache of blocks of remote files, so that small reads at random become few requests."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from threading import Lock

from graphbuild.store.files import Span

BLOCK_BYTES = 128 << 10
AHEAD_BYTES = 8 << 20
"""Most that is read ahead of a reader that goes through a file in order."""

REQUESTS = 16
"""Under way at once."""


class Blocks:
    """The least recently used blocks go when there are more than `most_bytes` of them.

    Args:
        fetch: reads a span; one that crosses the end of its file comes back shorter.
    """

    def __init__(self, fetch: Callable[[str, int, int], bytes], most_bytes: int) -> None:
        self._fetch, self._most = fetch, max(1, most_bytes // BLOCK_BYTES)
        self._blocks: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._ahead: dict[str, tuple[int, int]] = {}  # file -> block that a reader in order wants next, blocks ahead
        self._lock = Lock()

    def read(self, name: str, offset: int, nbytes: int) -> bytes:
        """Bytes of a file, fewer where it ends before."""
        if nbytes > self._most * BLOCK_BYTES // 4:
            return self._fetch(name, offset, nbytes)
        first, last = offset // BLOCK_BYTES, (offset + nbytes - 1) // BLOCK_BYTES
        found = self._known(name, first, last)
        if found is None:
            found = self._load(name, first, last + 1 + self._in_order(name, first, last))
        return found[offset - first * BLOCK_BYTES :][:nbytes]

    def load(self, spans: Iterable[Span]) -> None:
        """Fetch what of these spans is not there yet, with several requests at once."""
        missing = sorted(
            {
                (name, block)
                for name, offset, nbytes in spans
                for block in range(offset // BLOCK_BYTES, -(-(offset + nbytes) // BLOCK_BYTES))
                if (name, block) not in self._blocks
            }
        )
        runs: list[tuple[str, int, int]] = []
        for name, block in missing[: self._most]:
            if runs and runs[-1][0] == name and runs[-1][2] == block:
                runs[-1] = name, runs[-1][1], block + 1
            else:
                runs.append((name, block, block + 1))
        list(self._pool.map(lambda run: self._load(*run), runs))

    def forget(self, name: str) -> None:
        """Drop the blocks of a file that is gone."""
        with self._lock:
            for key in [key for key in self._blocks if key[0] == name]:
                del self._blocks[key]

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(REQUESTS, "graphbuild-read")

    def _known(self, name: str, first: int, last: int) -> bytes | None:
        with self._lock:
            keys = [(name, block) for block in range(first, last + 1)]
            if not all(key in self._blocks for key in keys):
                return None
            for key in keys:
                self._blocks.move_to_end(key)
            return b"".join([self._blocks[key] for key in keys])

    def _in_order(self, name: str, first: int, last: int) -> int:
        """How many blocks to read ahead: twice as many each time that a reader goes on where it stopped."""
        with self._lock:
            expected, ahead = self._ahead.get(name, (0, 0))
            goes_on = first <= expected <= last
            ahead = min(max(1, 2 * ahead), AHEAD_BYTES // BLOCK_BYTES, self._most // 4) if goes_on else 0
            self._ahead[name] = last + 1 + ahead, ahead
            return ahead

    def _load(self, name: str, first: int, stop: int) -> bytes:
        data = self._fetch(name, first * BLOCK_BYTES, (stop - first) * BLOCK_BYTES)
        with self._lock:
            for block in range(first, stop):
                self._blocks[name, block] = data[(block - first) * BLOCK_BYTES :][:BLOCK_BYTES]
            while len(self._blocks) > self._most:
                self._blocks.popitem(last=False)
        return data

"""Threads that decode samples ahead. Only in DataLoader workers: a process that forks must have none, as its children
inherit their locks held."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

from torch.utils.data import get_worker_info

from graphbuild.data.sample import GridSample


def loaded(samples: Iterable[GridSample], prefetch: int, threads: int) -> Generator[GridSample, None, None]:
    """The samples in order. In a DataLoader worker, threads decode at most `prefetch` of them ahead; elsewhere, or with
    0, they are decoded when their pixels are read."""
    if not prefetch or get_worker_info() is None:
        yield from samples
        return
    pool = ThreadPoolExecutor(threads, "graphbuild-decode")
    waiting: deque[Future[GridSample]] = deque()
    try:
        for sample in samples:
            waiting.append(pool.submit(sample.load))
            if len(waiting) > prefetch:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class _OpenCv:
    """Ends the threads of OpenCV while this process forks: a child that inherits them cannot end them, and its first
    `cv2.setNumThreads` never returns."""

    def __init__(self) -> None:
        self._threads = 0
        os.register_at_fork(before=self._before, after_in_parent=self._after, after_in_child=self._after)

    def _before(self) -> None:
        if cv2 := sys.modules.get("cv2"):
            self._threads = cv2.getNumThreads()
            cv2.setNumThreads(1)

    def _after(self) -> None:
        if self._threads:
            sys.modules["cv2"].setNumThreads(self._threads)  # new threads, when they are needed


_OpenCv()

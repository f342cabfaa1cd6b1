"""Threads that decode samples ahead, and forks that wait for them."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Condition, Lock, Thread, current_thread

from graphbuild.data.sample import GridSample

_LONGEST_END = 1.0  # seconds that a fork waits for ending threads


class _ForkGuard:
    """Lets a fork wait until no thread is decoding or ending: a child would inherit their locks held, and never get
    them. The threads of OpenCV are ended for the time being, as a child that has none of them cannot end them later.
    """

    def __init__(self) -> None:
        self._free, self._busy, self._forking = Condition(Lock()), 0, False
        self._threads: list[Thread] = []
        self._opencv = 0
        os.register_at_fork(before=self._before, after_in_parent=self._after, after_in_child=self._after)

    def enter(self) -> None:
        """A thread that will decode starts."""
        with self._free:
            self._threads = [thread for thread in self._threads if thread.is_alive() or _lingers(thread)]
            self._threads.append(current_thread())

    def load(self, sample: GridSample) -> GridSample:
        with self._free:
            while self._forking:
                self._free.wait()
            self._busy += 1
        try:
            return sample.load()
        finally:
            with self._free:
                self._busy -= 1
                self._free.notify_all()

    def _before(self) -> None:
        self._free.acquire()
        self._forking = True
        while self._busy:
            self._free.wait()
        deadline = time.monotonic() + _LONGEST_END
        while any(not thread.is_alive() and _lingers(thread) for thread in self._threads):
            if time.monotonic() > deadline:  # another thread may have the number by now
                break
            time.sleep(0.001)
        if cv2 := sys.modules.get("cv2"):
            self._opencv = cv2.getNumThreads()
            cv2.setNumThreads(1)

    def _after(self) -> None:
        if self._opencv:
            sys.modules["cv2"].setNumThreads(self._opencv)  # new threads, when they are needed
        self._forking = False
        self._free.notify_all()
        self._free.release()


def _lingers(thread: Thread) -> bool:
    """Whether the system still runs a thread. For Python it has ended before libraries clean up after it, which OpenCV
    does under a lock."""
    return os.path.exists(f"/proc/self/task/{thread.native_id}")


_GUARD = _ForkGuard()


def loaded(samples: Iterable[GridSample], prefetch: int, threads: int) -> Generator[GridSample, None, None]:
    """The same samples in the same order, at most `prefetch` of them decoded ahead by threads; with 0, as they are."""
    if not prefetch:
        yield from samples
        return
    pool = ThreadPoolExecutor(threads, "graphbuild", _GUARD.enter)
    waiting: deque[Future[GridSample]] = deque()
    try:
        for sample in samples:
            waiting.append(pool.submit(_GUARD.load, sample))
            if len(waiting) > prefetch:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)

"""One function over many values in other processes, a bounded number at a time, results in order."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeVar

from graphbuild.errors import GraphError

AHEAD = 4
"""Calls under way or waiting, per worker."""

Mapper = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]
T = TypeVar("T")
H = TypeVar("H")
R = TypeVar("R")


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0))


def in_order(values: Iterable[T], start: Callable[[T], H], result: Callable[[H], R], most: int) -> Iterator[R]:
    """The result of every value, at most `most` of which are under way."""
    left = iter(values)
    running = deque(map(start, islice(left, most)))
    while running:
        yield result(running.popleft())
        running.extend(map(start, islice(left, 1)))


@contextmanager
def processes(number: int) -> Iterator[Mapper]:
    """A `map` that works in so many processes of this machine.

    Raises:
        GraphError: one of them died.
    """
    context = multiprocessing.get_context("spawn")  # a fork would copy locks that threads hold
    pool = ProcessPoolExecutor(number, context, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN))

    def mapped(function: Callable[[T], R], values: Iterable[T]) -> Iterator[R]:
        def start(value: T) -> Future[R]:
            return pool.submit(function, value)

        return in_order(values, start, Future.result, number * AHEAD)

    try:
        yield mapped
    except BrokenProcessPool as error:
        raise GraphError("a process of the check died, perhaps for want of memory; try --jobs 1") from error
    finally:
        pool.shutdown(cancel_futures=True)

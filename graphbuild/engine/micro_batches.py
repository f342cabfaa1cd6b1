"""Micro-batches: as many requests at once as an annotator asks for and its device holds."""

from __future__ import annotations

import gc
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from graphbuild.annotators.base import Annotator, Derived, Request, Skip


@dataclass
class Loaded:
    """An annotator's model on one worker, and how many requests that worker hands over at once."""

    model: Any
    batch_size: int


class Stalled(BaseException):
    """A call that took longer than the `stall_s` of its annotator; no Exception, which an annotator might swallow."""


Results = list[Derived | Skip | BaseException]


def annotate(annotator: Annotator, batch: Sequence[Request], loaded: Loaded) -> Results:
    """One result per request, in order: what was made, or the exception.

    A batch that runs out of GPU memory is halved, and so is every later one on this worker. A batch that fails
    otherwise is tried again one by one, so that one bad input costs one row.

    Raises:
        KeyboardInterrupt: as it came.
        Exception: what `device_lost` knows: this process cannot use its GPU any more.
    """
    results: Results = []
    while rest := batch[len(results) :]:
        part, too_large = rest[: loaded.batch_size], False
        try:
            results += _answers(annotator, part, loaded)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # SystemExit of a library, too, is the failure of its row
            if device_lost(error):
                raise
            too_large = len(part) > 1 and out_of_memory(error)
            if not too_large:
                alone = [[request] for request in part] if len(part) > 1 else []
                results += [result for one in alone for result in annotate(annotator, one, loaded)] or [error]
        if too_large:  # not in the handler above, where the traceback holds what filled the GPU
            loaded.batch_size = (len(part) + 1) // 2
            _release()
    return results


def _answers(annotator: Annotator, batch: Sequence[Request], loaded: Loaded) -> Results:
    with _limited(annotator.resources.stall_s):
        answers: Results = list(annotator.annotate(batch, loaded.model))
    if len(answers) != len(batch):
        raise ValueError(f"annotate returned {len(answers)} results for {len(batch)} requests")
    return answers


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Raise Stalled in a block that takes longer. In the main thread alone, where Python hears signals, and not inside
    native code, which cannot be interrupted: on a cluster the driver kills the process instead."""
    free = signal.getsignal(signal.SIGALRM) in (signal.SIG_DFL, None)
    if not free or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(*_: object) -> None:
        raise Stalled(f"no answer within {seconds:g} s")

    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)


def out_of_memory(error: BaseException) -> bool:
    """True for a MemoryError, and for the error with which torch says that a GPU is full; torch need not be installed
    to tell."""
    return any(cls.__name__ in ("OutOfMemoryError", "MemoryError") for cls in type(error).__mro__)


def device_lost(error: BaseException) -> bool:
    """True for an error of CUDA after which every further call in this process fails, whatever it is given."""
    if out_of_memory(error) or not isinstance(error, RuntimeError):
        return False
    text = str(error)
    return "CUDA error" in text and "CUDA error: out of memory" not in text


def _release() -> None:
    gc.collect()
    if "torch" in sys.modules:
        sys.modules["torch"].cuda.empty_cache()

"""Exceptions for users, and plurals for their messages. Imports nothing of ours."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Numbers of the errors of a disk that takes no more: trying again does not help."""


class GraphError(ValueError):
    """A graph, or what was asked of it, is wrong; the message names the file, the value and the fix."""


class CorruptNode(GraphError):
    """Stored bytes differ from the hash their edge recorded."""


class MissingNode(LookupError):
    """The node was skipped, failed or never planned; the message says which and why."""


class UnusableImage(ValueError):
    """An image that cannot be used; `reason` is what its edge records."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(detail or reason)
        self.reason = reason


class MissingWeights(GraphError):
    """A checkpoint is not on this machine; the message names the command that gets it."""


class Unreachable(OSError):
    """A store that does not answer, or not to these credentials: this says nothing of the graph in it. The message
    names the URL, what the store said, and the fix."""


def counted(number: int, noun: str) -> str:
    """`1 file`, `2 files`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


@contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Name the file in the error of a full disk, which names none.

    Raises:
        OSError: one of `FULL`, with the path.
    """
    try:
        yield
    except OSError as error:
        if error.errno in FULL and error.filename is None:
            raise OSError(error.errno, os.strerror(error.errno), os.fspath(path)) from error
        raise

"""Real file systems of a size or kind that a test chooses, where mounting is allowed."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def mounted(folder: Path, *options: str) -> Iterator[Path]:
    """A mounted folder; the test skips where that is not allowed."""
    folder.mkdir(exist_ok=True)
    try:
        subprocess.run(["mount", *options, str(folder)], check=True, capture_output=True)
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        pytest.skip(f"cannot mount: {getattr(error, 'stderr', error)!r}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)

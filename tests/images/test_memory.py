"""Memory of dropped pictures."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PICTURES = """
import resource, sys
from graphbuild.images.memory import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
for number in range(21):
    [b"." * size for size in range(1 << 20, 3 << 20, 1 << 18)]
    if number == 0:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    """Page faults of a new process that makes and drops the buffers of twenty pictures more than once."""
    done = subprocess.run([sys.executable, "-c", PICTURES, how], check=True, capture_output=True, text=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_memory_of_pictures_is_used_again() -> None:
    """Guards against buffers that go back to the kernel after each picture, and are cleared anew for the next."""
    assert faults("keep") * 10 < faults("drop")

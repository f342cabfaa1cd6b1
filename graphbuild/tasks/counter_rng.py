"""Counter-based random numbers: each is a function of (key, stream, counter, label) alone.

So leaving one draw out moves no other, any worker draws the same, and a run resumes from one integer. `Draws` gives
one number at a time, `draw_bits` a whole table; they agree bit by bit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[np.uint64]

_GOLDEN = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB
_MASK = (1 << 64) - 1
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


class Draws:
    """The draws of one counter, by label."""

    def __init__(self, key: int, counter: int, stream: str) -> None:
        self._base = _mix(_start(key, stream) + counter * _GOLDEN)

    def bits(self, label: str) -> int:
        """64 uniform bits."""
        return _mix(self._base ^ hash64(label))

    def unit(self, label: str) -> float:
        """Uniform in [0, 1)."""
        return (self.bits(label) >> 11) * 2.0**-53

    def below(self, label: str, n: int) -> int:
        """Uniform in range(n), by multiply and shift (D. Lemire, "Fast Random Integer Generation in an Interval")."""
        value = ((self._base ^ hash64(label)) + _GOLDEN) & _MASK  # `_mix` written out: it is called for every word
        value = ((value ^ (value >> 30)) * _FIRST) & _MASK
        value = ((value ^ (value >> 27)) * _SECOND) & _MASK
        return ((value ^ (value >> 31)) * n) >> 64


def draw_bits(key: int, stream: str, counters: Bits, labels: Bits) -> Bits:
    """`Draws(key, counter, stream).bits(label)` for every counter (rows) and hashed label (columns)."""
    base = counters * np.uint64(_GOLDEN)
    base += np.uint64(_start(key, stream))
    return _mix_all(_mix_all(base)[:, None] ^ labels)


def label_hashes(labels: Sequence[str]) -> Bits:
    return np.array([hash64(label) for label in labels], np.uint64)


def unit(bits: Bits) -> NDArray[np.float64]:
    """Uniform in [0, 1), as `Draws.unit`."""
    return np.asarray((bits >> np.uint64(11)) * 2.0**-53, np.float64)


def below(bits: Bits, n: NDArray[np.int64]) -> NDArray[np.int64]:
    """Uniform in range(n), n < 2**32, as `Draws.below`: the high half of a 64 by 32 bit product."""
    wide = n.astype(np.uint64)
    carried = ((bits & _LOW) * wide) >> _HALF
    return (((bits >> _HALF) * wide + carried) >> _HALF).astype(np.int64)


@lru_cache(maxsize=4096)
def hash64(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


@lru_cache(maxsize=64)
def _start(key: int, stream: str) -> int:
    return _mix(key ^ hash64(stream))


def _mix(value: int) -> int:
    """The finaliser of SplitMix64 (G. Steele et al., "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014)."""
    value = (value + _GOLDEN) & _MASK
    value = ((value ^ (value >> 30)) * _FIRST) & _MASK
    value = ((value ^ (value >> 27)) * _SECOND) & _MASK
    return value ^ (value >> 31)


def _mix_all(values: Bits) -> Bits:
    """`_mix` of every value; numpy's uint64 wraps as the masks above do."""
    values = values + np.uint64(_GOLDEN)
    for shift, factor in ((30, _FIRST), (27, _SECOND)):
        values ^= values >> np.uint64(shift)
        values *= np.uint64(factor)
    values ^= values >> np.uint64(31)
    return values

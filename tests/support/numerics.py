"""The one way to compare results of floating-point arithmetic: a relative error against what rounding can cause.

The error is a norm over all values, never a limit on single ones: a value that cancels has no relative accuracy. The
bound is `K * eps * sqrt(terms)`: errors of `terms` roundings grow like a random walk (N. J. Higham and T. Mary, "A New
Approach to Probabilistic Rounding Error Analysis", SIAM J. Sci. Comput. 41, 2019), whatever the processor, the kernels
and the number of threads. That a bound is tight enough is shown by a mutant, a result with a known mistake in it, which
must exceed the bound.

Bit equality (`torch.equal`) is for two sides that run the same operations in the same order. `pytest.approx` is for
limits that are not about rounding: printed digits, statistics of draws, grey levels, measured sizes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

K = 8
"""How much larger than a random walk an error may be."""


def error(found: Any, wanted: Any) -> float:
    """`||found - wanted|| / ||wanted||` in float64, of arrays, tensors or lists of one shape."""
    a, b = _float64(found), _float64(wanted)
    assert a.shape == b.shape and b.size, f"{a.shape} and {b.shape}"
    assert np.isfinite(a).all() and np.isfinite(b).all()
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def rounding(terms: int, dtype: torch.dtype = torch.float32) -> float:
    """The largest relative error that rounding explains.

    Args:
        terms: roundings on the longest way from the inputs to one value: the terms of a sum, added up over layers and
            steps. The right order of magnitude is enough.
        dtype: the least precise one on that way.
    """
    return float(K * torch.finfo(dtype).eps * terms**0.5)


def assert_close(found: Any, wanted: Any, *, terms: int, mutant: Any, dtype: torch.dtype = torch.float32) -> None:
    """Assert that two results differ by rounding alone, and that the comparison would see a mistake.

    Args:
        found: what the code under test made.
        wanted: a reference, in float64 where it is the test's own.
        terms, dtype: as of `rounding`; the dtype that `found` was computed in.
        mutant: the result of a computation with a known, small mistake: another sign, order, scale or input.
    """
    bound = rounding(terms, dtype)
    assert error(found, wanted) <= bound
    assert error(mutant, wanted) > bound, "the mutant passes: the bound is too wide, or the test blind"


def _float64(values: Any) -> NDArray[np.float64]:
    if isinstance(values, torch.Tensor):
        return values.detach().cpu().double().numpy()
    return np.asarray(values, np.float64)

"""Distance between two sets of feature vectors."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.float64]


def frechet(made: Features, truth: Features) -> float:
    """Fréchet distance of the Gaussians with the means and covariances of two sets (M. Heusel et al., arXiv
    1706.08500): |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^1/2).

    The trace of the root is the nuclear norm of one centred set times the other's transpose: exact, and small where
    there are fewer pictures than features.

    Args:
        made, truth: N x F, at least two vectors each.
    """
    sets = [each - each.mean(0) for each in (made, truth)]
    one, other = (each / np.sqrt(len(each) - 1) for each in sets)
    root = np.linalg.svd(one @ other.T, compute_uv=False).sum()
    means = np.square(made.mean(0) - truth.mean(0)).sum()
    return max(0.0, float(means + np.square(one).sum() + np.square(other).sum() - 2 * root))

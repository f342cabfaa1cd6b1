"""Random latents, the same for the same walk, as the tests of objectives noise them."""

from __future__ import annotations

import torch

from graphbuild_train.batch import LatentBatch

SIZE = ((2, 3), (2, 2), (1, 5), (3, 1))
LENGTHS = [6, 4, 5, 3]


def batch_of(*indices: int, dtype: torch.dtype = torch.float32, channels: int = 4) -> LatentBatch:
    """Random latents of four units, the last with holes or the last two; the same for the same walk."""
    tokens = sum(LENGTHS)
    z, generated = torch.empty(len(indices), tokens, channels), torch.zeros(len(indices), tokens, dtype=torch.bool)
    for at, index in enumerate(indices):
        z[at] = torch.randn(tokens, channels, generator=torch.Generator().manual_seed(index)) * 2 + 1
        generated[at, -3 if index % 2 else -8 :] = True
    view = torch.arange(len(SIZE)).repeat_interleave(torch.tensor(LENGTHS)).expand(len(indices), -1)
    return LatentBatch(
        z=z.to(dtype), generated=generated, view=view, ids=torch.zeros(tokens, 3), size=SIZE, text={},
        index=torch.tensor(indices),
    )  # fmt: skip

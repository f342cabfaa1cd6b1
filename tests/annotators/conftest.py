"""What tests of annotators share."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def one_thread() -> None:
    """For networks so small that threads only wait for one another."""
    import torch

    torch.set_num_threads(1)

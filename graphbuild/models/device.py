"""Networks made ready for inference: frozen, on their device, in their precision."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    import torch

Dtype = Literal["float32", "bfloat16", "float16"]
"""Precision of weights and activations. It changes pixels, so it is part of an annotator's version."""


def torch_dtype(name: Dtype) -> torch.dtype:
    """torch's own object for a precision."""
    import torch

    found: torch.dtype = getattr(torch, name)
    return found


def frozen(network: Any, device: str, dtype: Dtype, *, compiled: bool = False) -> Any:
    """A torch module in evaluation mode on `device`, without gradients; `compiled` by torch on its first call."""
    import torch

    network = network.eval().requires_grad_(False).to(device=device, dtype=torch_dtype(dtype))
    return torch.compile(network) if compiled else network


def hide_loading_bars() -> None:
    """Switch off transformers' progress bars: one for each worker would hide the run's own."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # type: ignore[no-untyped-call]


def use_threads(cpus: float) -> None:
    """Give torch, if it is loaded, as many threads as a worker has CPUs, so that workers with equal resources add in
    the same order."""
    count = max(1, int(cpus))
    if "torch" in sys.modules and sys.modules["torch"].get_num_threads() != count:
        sys.modules["torch"].set_num_threads(count)


def device_memory() -> tuple[str, float]:
    """The device that networks run on here, `cuda` or `cpu`, and its memory in GB (10^9 bytes): the GPU's, else main
    memory."""
    if find_spec("torch") is not None:
        import torch

        if torch.cuda.is_available():
            return "cuda", torch.cuda.get_device_properties(0).total_memory / 1e9
    return "cpu", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9


class GpuUse(NamedTuple):
    """Memory that all processes use of a GPU, and what it has, in bytes; `busy`: the share of the last second in which
    it computed, 0..1, None where NVML (`nvidia-ml-py`) is not installed."""

    used: int
    total: int
    busy: float | None


def gpu_use() -> GpuUse | None:
    """That of the GPU of this process; None if it has none, or has not begun to use it. Never waits for it."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    try:
        free, total = torch.cuda.mem_get_info()
    except RuntimeError:  # it was lost: its unit says so
        return None
    try:
        busy = torch.cuda.utilization() / 100
    except Exception:  # no NVML, or one of its own errors, as of a part of a GPU (MIG): the work goes on without
        busy = None
    return GpuUse(total - free, total, busy)

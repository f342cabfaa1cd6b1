"""Peak memory of a computation, counted on the meta device: storage by storage, from its making to its end.

Attention and RMS norms count as CUDA's fused kernels do them. What an allocator adds is not in it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def peak_bytes(compute: Callable[[], object], kept: Iterable[Tensor] = ()) -> int:
    """Bytes of the tensors that live at the peak of a computation on the meta device, those of `kept` aside."""
    counted = _Counted(kept)
    with _fused(), counted:
        compute()
    return counted.peak


class _Counted(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of every storage that an operation makes until nothing refers to it."""

    def __init__(self, kept: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self.known: weakref.WeakSet[Any] = weakref.WeakSet(tensor.untyped_storage() for tensor in kept)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage()) not in self.known:
                self.known.add(storage)
                self.live += storage.nbytes()
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._ended, storage.nbytes())
        return made

    def _ended(self, size: int) -> None:
        self.live -= size


class _RmsNorm(torch.autograd.Function):
    """What the fused kernel keeps: its input, and a number for each vector."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, *_: Any) -> Tensor:
        ctx.save_for_backward(states, states.new_empty(states.shape[:-1], dtype=torch.float32))
        return torch.empty_like(states)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return torch.empty_like(gradient), None, None, None


@contextmanager
def _fused() -> Iterator[None]:
    """On the meta device torch would choose the attention that keeps all scores, and RMS norms in float32."""
    stock = functional.scaled_dot_product_attention, functional.rms_norm

    def attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **options: Any) -> Tensor:
        attended: Tensor = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[0]
        return attended

    functional.scaled_dot_product_attention, functional.rms_norm = attention, _RmsNorm.apply
    try:
        yield
    finally:
        functional.scaled_dot_product_attention, functional.rms_norm = stock

"""Frozen linear layers with fewer bits: int8 and fp8 by torchao, nf4 (arXiv 2305.14314) by bitsandbytes.

The libraries quantise while a checkpoint is loaded, through the configs of diffusers and transformers. Then the layers
of the base become `PackedLinear`, whose backward pass unpacks the weight again: the libraries' own layers of int8 and
fp8 would keep a copy of each weight in bfloat16 from the forward pass on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from graphbuild_train.config import Quantise

BLOCK = 64
"""Weights that share a scale in nf4; in int8 and fp8 a row of the weight does."""
_How = tuple[Quantise, tuple[int, int]]
"""The kind, and the shape out x in of the weight."""
_LIBRARY = {"int8": "torchao", "fp8": "torchao", "nf4": "bitsandbytes"}


def check(kind: Quantise) -> None:
    """Refuse a kind whose library is not installed.

    Raises:
        ValueError: it is not.
    """
    if kind != "none" and find_spec(_LIBRARY[kind]) is None:
        raise ValueError(f"quantise: {kind!r} needs {_LIBRARY[kind]}: pip install 'graphbuild[quantise]'")


def while_loading(kind: Quantise, base: str, encoders: Sequence[str], dtype: torch.dtype, device: Any) -> Any:
    """The `quantization_config` of a pipeline's `from_pretrained`; None where nothing is quantised on the way.

    Args:
        base: name of the network that gets the LoRA. On a CPU diffusers refuses nf4 for it: `pack` quantises it then.
        encoders: names of text encoders.
    """
    if kind == "none":
        return None
    import diffusers
    import transformers

    on_gpu = torch.device(device).type == "cuda"
    mapping = {name: _config(kind, transformers, dtype) for name in encoders}
    if on_gpu or kind != "nf4":
        mapping[base] = _config(kind, diffusers, dtype)
    library: Any = diffusers
    return library.PipelineQuantizationConfig(quant_mapping=mapping) if mapping else None


def _config(kind: Quantise, library: Any, dtype: torch.dtype) -> Any:
    if kind == "nf4":
        return library.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
        )  # fmt: skip
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig

    return library.TorchAoConfig(Int8WeightOnlyConfig() if kind == "int8" else Float8WeightOnlyConfig())


class PackedLinear(nn.Linear):
    """A frozen linear layer of which neither pass keeps an unpacked weight.

    `packed` and `scale` are plain tensors, so that data-parallel and sharded training, peft and checkpoints need to
    know nothing of them. Floats among them are kept as integers of their bits: casting the model leaves them alone.
    """

    def __init__(self, layer: nn.Linear, kind: Quantise, packed: Tensor, scale: Tensor) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.how: _How = kind, (layer.out_features, layer.in_features)
        self.packed = nn.Parameter(packed, requires_grad=False)
        self.scale = nn.Parameter(scale.float().contiguous().view(torch.int32), requires_grad=False)
        self.bias = layer.bias

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The weight, out x in, unpacked for the occasion, in the dtype of the bias or bfloat16."""
        dtype = torch.bfloat16 if self.bias is None else self.bias.dtype
        return _unpacked(self.packed, self.scale, self.how, dtype)

    def forward(self, x: Tensor) -> Tensor:
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        made: Tensor = _Linear.apply(x.to(dtype), self.packed, self.scale, self.how)
        return made if self.bias is None else made + self.bias.to(dtype)


class _Linear(torch.autograd.Function):
    """A linear layer without bias that unpacks its weight in both passes; only the input has a gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Tensor, scale: Tensor, how: _How) -> Tensor:
        ctx.save_for_backward(packed, scale)
        ctx.how = how
        return functional.linear(x, _unpacked(packed, scale, how, x.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        packed, scale = ctx.saved_tensors
        return gradient @ _unpacked(packed, scale, ctx.how, gradient.dtype), None, None, None


def pack(model: nn.Module, kind: Quantise) -> None:
    """Make every linear layer of a frozen network a `PackedLinear`, in place; `none` does nothing.

    Layers that were quantised while loading keep their bits; in nf4 others are quantised here.
    """
    if kind == "none":
        return
    for module in list(model.modules()):
        for name, layer in module.named_children():
            if isinstance(layer, nn.Linear) and (packed := _packed(layer, kind)):
                setattr(module, name, PackedLinear(layer, kind, *packed))


def keep_layout(encoder: nn.Module) -> None:
    """Keep bitsandbytes from packing weights anew for CPUs with AVX512-BF16: that rounds their scales to bfloat16, so
    that embeddings would depend on the processor, and takes only layers whose rows are a multiple of 32."""
    layers: Iterable[Any] = encoder.modules()
    for layer in layers:
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False


def packed_bytes(layer: nn.Linear, kind: Quantise) -> int:
    """Bytes of a layer's weight."""
    rows, columns = layer.out_features, layer.in_features
    if kind == "none":
        return layer.weight.nbytes
    blocks = -(-rows * columns // BLOCK) if kind == "nf4" else rows
    return (rows * columns // 2 if kind == "nf4" else rows * columns) + 4 * blocks


def _packed(layer: nn.Linear, kind: Quantise) -> tuple[Tensor, Tensor] | None:
    """Packed weight and scales; None for a layer that its model keeps in full precision."""
    weight: Any = layer.weight
    if hasattr(weight, "qdata"):
        return weight.qdata.view(torch.int8), weight.scale
    if getattr(weight, "quant_state", None) is not None:
        return weight.data, weight.quant_state.absmax
    if kind != "nf4" or weight.device.type != "cpu":
        return None
    from bitsandbytes.functional import quantize_4bit

    packed, state = quantize_4bit(weight.data, blocksize=BLOCK, quant_type="nf4", compress_statistics=False)
    return packed, state.absmax


def _unpacked(packed: Tensor, scale: Tensor, how: _How, dtype: torch.dtype) -> Tensor:
    (kind, shape), factors = how, scale.view(torch.float32)
    if kind != "nf4":
        whole = packed.view(torch.float8_e4m3fn) if kind == "fp8" else packed
        return (whole.to(torch.float32) * factors).to(dtype)
    from bitsandbytes.functional import QuantState, dequantize_4bit

    state = QuantState(  # type: ignore[no-untyped-call]
        absmax=factors, shape=torch.Size(shape), code=_code(packed.device), blocksize=BLOCK, quant_type="nf4",
        dtype=dtype,
    )  # fmt: skip
    unpacked: Tensor = dequantize_4bit(packed, state)
    return unpacked


@cache
def _code(device: torch.device) -> Tensor:
    """The 16 values of nf4."""
    from bitsandbytes.functional import get_4bit_type

    values: Tensor = get_4bit_type("nf4", device=device, blocksize=BLOCK)  # type: ignore[no-untyped-call]
    return values

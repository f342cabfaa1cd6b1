"""The trained part: low-rank updates of a frozen base's linear layers (LoRA, arXiv 2106.09685), as a peft adapter."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MethodType
from typing import Any

import peft
import torch
from diffusers.loaders.peft import PeftAdapterMixin
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from graphbuild_train import pissa
from graphbuild_train.config import LoraConfig

ADAPTER = "default"
"""Name of the trained adapter in the model. It is not in saved names."""

_PISSA: Any = "pissa_niter_16"
"""By randomised singular value decomposition (arXiv 0909.4061), in seconds for a model in place of hours."""

_SHAPING = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "target_modules", "use_rslora", "lora_bias")
"""The fields of peft that change the output. An older peft refuses a file with a field that it does not know."""


@dataclass(frozen=True, kw_only=True)
class LoraCount:
    """How much is trained."""

    modules: int
    """Adapted linear layers."""
    parameters: int
    share: float
    """Trained parameters over all parameters of the model, the trained ones among them."""

    def __str__(self) -> str:
        size = f"{self.parameters / 1e6:,.1f} M" if self.parameters >= 1e6 else f"{self.parameters:,}"
        return f"{self.modules} layers, {size} parameters, {self.share:.3%} of the model"


def add_lora(
    model: nn.Module, config: LoraConfig, targets: Iterable[str], *, seed: int = 0,
    start: Mapping[str, Tensor] | None = None,
) -> LoraCount:  # fmt: skip
    """Freeze a diffusers model and adapt its linear layers, before anything else wraps it.

    The update is zero at first, or what PiSSA takes out of the weights. Its parameters are float32 on the model's
    device and the only ones with gradients. A layer narrower than the rank gets its own width as rank, at the same
    scale (as in VisualCloze, arXiv 2504.07960).

    Args:
        model: a diffusers model; on the meta device inside `torch.device("meta")`, where it costs nothing.
        targets: names of linear layers, or suffixes of names after a dot (`attn.to_q`).
        seed: of the down-projections; the global random state is left alone.
        start: what PiSSA took out when the run began, under the names of `lora_state`.

    Raises:
        ValueError: no linear layer matches a target, or the model is adapted already.
    """
    if not isinstance(model, PeftAdapterMixin):
        raise TypeError(f"{type(model).__name__}; allowed: a diffusers model that takes LoRA adapters")
    ranks = {
        name: min(config.rank, layer.in_features, layer.out_features)  # a packed weight has another shape
        for name, layer in _chosen(model, targets).items()
    }
    narrow = {f"^{name}": rank for name, rank in ranks.items() if rank < config.rank}  # ^: not the end of another name
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.add_adapter(  # which freezes the rest
            peft.LoraConfig(
                r=config.rank,
                lora_alpha=config.scale_alpha,
                rank_pattern=narrow,
                alpha_pattern={
                    name: config.scale_alpha * (rank / config.rank) ** (0.5 if config.rslora else 1)
                    for name, rank in narrow.items()
                },
                use_rslora=config.rslora,
                target_modules=sorted(ranks),
                lora_bias=config.bias,
                init_lora_weights=_PISSA if config.init == "pissa" and not start else True,
            ),
            ADAPTER,
        )
    for parameter in _parameters(model).values():
        parameter.data = parameter.data.float()  # peft takes the base's dtype
    if start:
        load_lora(model, start)
        pissa.take_out(model, ADAPTER)
        model.peft_config[ADAPTER].init_lora_weights = _PISSA  # type: ignore[union-attr,index]
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            vars(layer)["forward"] = MethodType(_forward, layer)  # bound, so that a copy of a model calls its own
    return count_lora(model)


def count_lora(model: nn.Module) -> LoraCount:
    """Count the adapted layers of a model."""
    trained = _parameters(model)
    own, whole = (sum(p.numel() for p in parameters) for parameters in (trained.values(), model.parameters()))
    return LoraCount(
        modules=sum(name.endswith(".lora_A.weight") for name in trained), parameters=own, share=own / whole
    )


def lora_state(model: nn.Module) -> dict[str, Tensor]:
    """The parameters of the update under the names of diffusers' files, without the `transformer.` or `unet.` before.

    `<layer>.lora_A.weight` is rank x in, `<layer>.lora_B.weight` out x rank, `<layer>.lora_B.bias` out, all float32.
    They share memory with the model.
    """
    return {name: parameter.detach() for name, parameter in _parameters(model).items()}


def load_lora(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Overwrite the update of an adapted model, in place, from `lora_state` of an equal one.

    Raises:
        ValueError: names or shapes differ: the update was made with another preset, rank or base.
    """
    own = lora_state(model)
    wrong = sorted({name for name in own.keys() | state.keys() if _shape(own, name) != _shape(state, name)})
    if wrong:
        here, there = (_shape(tensors, wrong[0]) or "missing" for tensors in (own, state))
        raise ValueError(f"{wrong[0]}: {here} in the model, {there} in the saved LoRA ({len(wrong)} such entries)")
    for name, parameter in own.items():
        parameter.copy_(state[name])


@contextmanager
def swapped(model: nn.Module, state: Mapping[str, Tensor]) -> Iterator[None]:
    """Use another update, such as the moving average, inside a `with` block; afterwards the model's own is restored."""
    kept = {name: parameter.clone() for name, parameter in lora_state(model).items()}
    load_lora(model, state)
    try:
        yield
    finally:
        load_lora(model, kept)


def adapter_config(model: nn.Module) -> dict[str, Any]:
    """Metadata that readers of its file need besides the tensors: scale, ranks, layers, bias, as JSON values under
    peft's names."""
    fields = model.peft_config[ADAPTER].to_dict()  # type: ignore[union-attr,index]
    fields["target_modules"] = sorted(fields["target_modules"])
    shaping = {name: fields[name] for name in _SHAPING if fields[name]}
    return pissa.doubled(shaping) if fields["init_lora_weights"] == _PISSA else shaping


def start_of(model: nn.Module) -> dict[str, Tensor]:
    """What PiSSA took out of a model that was adapted just now, in main memory; empty if its update began at zero."""
    began = model.peft_config[ADAPTER].init_lora_weights == _PISSA  # type: ignore[union-attr,index]
    return {name: value.to("cpu", copy=True) for name, value in lora_state(model).items()} if began else {}


def _chosen(model: nn.Module, targets: Iterable[str]) -> dict[str, nn.Linear]:
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    chosen: dict[str, nn.Linear] = {}
    for target in targets:
        found = {name: layer for name, layer in linear.items() if f".{name}".endswith(f".{target}")}
        if not found:
            some = ", ".join(list(linear)[:: max(1, len(linear) // 6)])
            raise ValueError(
                f"targets: {target!r} is no linear layer of {type(model).__name__}; some of its {len(linear)}: {some}"
            )
        chosen |= found
    if not chosen:
        raise ValueError(f"targets: none; allowed: names of linear layers of {type(model).__name__}")
    return chosen


def _parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    mark = f".{ADAPTER}."
    named = model.named_parameters()
    return {name.replace(mark, "."): p for name, p in named if ".lora_" in name and mark in name}


def _forward(layer: Any, x: Tensor, *arguments: Any, **options: Any) -> Tensor:
    """peft's forward pass, bit for bit, but without a product where the scale is 1: in both passes it would cost as
    much as the sum."""
    special = arguments or options or layer.disable_adapters or layer.merged or layer.active_adapters != [ADAPTER]
    if special or layer.scaling[ADAPTER] != 1:
        return type(layer).forward(layer, x, *arguments, **options)  # type: ignore[no-any-return]
    frozen: Tensor = layer.base_layer(x)
    down, up = layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]
    update: Tensor = up(down(x.to(down.weight.dtype) if layer.cast_input_dtype_enabled else x))
    return (frozen + update).to(frozen.dtype)


def _shape(tensors: Mapping[str, Tensor], name: str) -> tuple[int, ...] | None:
    return tuple(tensors[name].shape) if name in tensors else None

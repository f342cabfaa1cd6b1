"""The optimiser of a run, by name: AdamW, AdamW with 8-bit moments, or a class of any package."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from graphbuild.config.lookup import find
from graphbuild_train.config import OptimiserConfig

OPTIMISERS = {"adamw": "torch.optim:AdamW", "adamw_8bit": "bitsandbytes.optim:AdamW8bit"}
GROUP = "graphbuild.optimisers"
"""Entry points of other packages with optimisers."""
_MOMENTS = {"adamw_8bit": 2}


def check(config: OptimiserConfig) -> None:
    """Refuse an optimiser that there is not, before anything is loaded.

    Raises:
        ValueError: it cannot be imported, or takes other options.
    """
    made(config, [nn.Parameter(torch.zeros(1))])


def made(config: OptimiserConfig, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimiser of some parameters; its learning rate is to be set before each step.

    Raises:
        ValueError: there is no such optimiser, or it takes other options.
    """
    cls = find("optimiser", config.name, OPTIMISERS, GROUP)
    if not (isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer)):
        raise ValueError(f"optimiser.name: {config.name!r} is no optimiser of torch's kind; name a subclass of it")
    options = {"fused": True, **config.options} if cls is torch.optim.AdamW else dict(config.options)
    try:
        built: torch.optim.Optimizer = cls(
            parameters, lr=config.learning_rate or 1e-12, weight_decay=config.weight_decay, **options
        )  # type: ignore[call-arg]
    except (TypeError, ValueError) as error:
        raise ValueError(f"optimiser.options: {config.options}: {config.name} refuses them ({error})") from error
    return built


def state_of(optimiser: torch.optim.Optimizer) -> dict[str, Any]:
    """Its state in torch's own form (bitsandbytes has another), each tensor for itself: some share theirs."""
    state = torch.optim.Optimizer.state_dict(optimiser)
    own = {at: {name: _own(value) for name, value in entry.items()} for at, entry in state["state"].items()}
    return {**state, "state": own}


def moments(config: OptimiserConfig) -> int:
    """Bytes of its state for each parameter: those of AdamW, if they are not known."""
    return _MOMENTS.get(config.name, 8)


def averaged(optimiser: torch.optim.Optimizer, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The parameters that an optimiser gives to users, where these differ from the trained ones (schedule-free,
    arXiv 2405.15682); else nothing. `state` is left as it is."""
    if not hasattr(optimiser, "eval"):
        return {}
    kept = {name: value.clone() for name, value in state.items()}
    optimiser.eval()
    finished = {name: value.clone() for name, value in state.items()}
    optimiser.train()  # type: ignore[attr-defined]
    for name, value in kept.items():
        state[name].copy_(value)
    return finished


def _own(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) and value.dtype == torch.float32 and value.dim() == 1 else value

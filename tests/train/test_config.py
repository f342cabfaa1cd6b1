"""The trainer's configuration: defaults of the design, strict loading."""

from __future__ import annotations

from typing import Any

import pytest

from graphbuild_train import OptimiserConfig, TrainConfig, config_from


def test_defaults_are_the_ones_that_were_designed() -> None:
    """Guards against a default that drifts: it decides which LoRA comes out."""
    config = config_from({})
    assert config == TrainConfig()
    assert (config.lora.layers, config.lora.rank, config.lora.scale_alpha, config.lora.bias) == (
        "attn_ff",
        64,
        64,
        False,
    )
    assert (config.shift, config.guidance, config.optimiser.learning_rate) == (None, 1.0, 1e-4)
    assert config.model is None and config.sampler.split == "train"


def test_a_recipe_overrides_nested_fields() -> None:
    """Guards against a nested mapping that replaces its neighbours' values."""
    config = config_from({"base": "sdxl", "lora": {"rank": 32, "alpha": 4}})
    assert (config.base, config.lora.rank, config.lora.scale_alpha, config.lora.layers) == ("sdxl", 32, 4, "attn_ff")


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"lorra": {}}, ["lorra", "lora", "objective"]),
        ({"lora": {"rnk": 1}}, ["lora", "rnk", "rank"]),
        ({"lora": {"rank": 0}}, ["rank", "0"]),
        ({"batch": 8, "micro_batch": 3}, ["micro_batch", "3", "8"]),
        ({"lora": {"dora": True}}, ["dora", "dora_scale", "diffusers", "ComfyUI", "pissa"]),
        ({"lora": {"init": "pissa", "bias": True}}, ["pissa", "zero with bias"]),
        ({"lora": {"init": "pissa"}, "quantise": "nf4"}, ["pissa", "quantise: nf4"]),
        ({"lora": {"init": "pissa"}, "init": "a.safetensors"}, ["pissa", "init: a.safetensors"]),
        ({"lora": {"layers": []}}, ["layers", "patterns"]),
        ({"watch": {"loggers": ["mlflow"]}}, ["mlflow", "tensorboard", "wandb", "trackio"]),
        ({"guidance": float("nan")}, ["guidance", "nan"]),
    ],
)
def test_a_wrong_recipe_says_what_is_valid(document: dict[str, object], words: list[str]) -> None:
    """Guards against a typo that trains with a default for days."""
    with pytest.raises(ValueError, match=words[0]) as caught:
        config_from(document)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("constant", [0.5, 1, 1, 1, 1, 1]),
        ("linear", [0.5, 1, 1, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1, 1, 0.853553, 0.5, 0.146447]),
    ],
)
def test_the_learning_rate_is_a_function_of_the_steps_done(schedule: Any, rates: list[float]) -> None:
    """Guards against a first step at rate zero, and a schedule that starts over after a resume."""
    optimiser = OptimiserConfig(learning_rate=2.0, schedule=schedule, warmup=2)
    assert [optimiser.rate(done, 6) / 2 for done in range(6)] == pytest.approx(rates, abs=1e-6)


def test_a_cache_without_rounds_is_refused() -> None:
    """Guards against memory filled with pictures that never come again."""
    with pytest.raises(ValueError, match=r"cache_gb: 1.0; allowed only with walks"):
        config_from({"cache_gb": 1})
    with pytest.raises(ValueError, match=r"walks: 100; allowed: a multiple of batch, 64, or 0"):
        config_from({"walks": 100})

"""The trainer's configuration: defaults of the design, strict loading."""

from __future__ import annotations

import pytest

from graphbuild_train import TrainConfig, config_from


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
    assert (config.shift, config.guidance, config.optimiser.learning_rate) == ("dynamic", 1.0, 1e-4)


def test_a_recipe_overrides_nested_fields() -> None:
    """Guards against a nested mapping that replaces its neighbours' values."""
    config = config_from({"base": "sdxl", "lora": {"rank": 32, "alpha": 4}})
    assert (config.base, config.lora.rank, config.lora.scale_alpha, config.lora.layers) == ("sdxl", 32, 4, "attn_ff")


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"lorra": {}}, ["lorra", "lora", "objective"]),
        ({"lora": {"rnk": 1}}, ["lora", "rnk", "rank"]),
        ({"base": "sd15"}, ["base", "sd15", "flux_fill"]),
        ({"lora": {"rank": 0}}, ["rank", "0"]),
        ({"batch": 8, "micro_batch": 3}, ["micro_batch", "3", "8"]),
        ({"guidance": float("nan")}, ["guidance", "nan"]),
    ],
)
def test_a_wrong_recipe_says_what_is_valid(document: dict[str, object], words: list[str]) -> None:
    """Guards against a typo that trains with a default for days."""
    with pytest.raises(ValueError, match=words[0]) as caught:
        config_from(document)
    assert all(word in str(caught.value) for word in words), caught.value

"""FLUX.1 told times by part: the stock model where all are equal, and for each part its own where they are not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import Any

import pytest
import torch

from graphbuild_train.bases import flux, per_token
from tests.support.numerics import assert_close, error, rounding
from tests.support.tiny_models import components

pytestmark = pytest.mark.numeric

FORWARD = 1000
"""Roundings of a forward pass of the small model: about ten layers with sums of about a hundred terms."""
LENGTHS = [3, 5, 2]
TIMES = torch.tensor([[0.9, 0.8], [0.0, 0.1], [0.9, 0.3], [0.4, 0.8]])
"""Of the text and three parts, for two samples."""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def stock() -> Any:
    return components(in_channels=64, guidance=True)["transformer"].requires_grad_(False)


@pytest.fixture
def model(stock: Any) -> Any:
    made = deepcopy(stock)
    per_token.time_by_part(made)
    return made


def forward(model: Any, lengths: list[int], times: torch.Tensor | None, order: Sequence[int] = ()) -> torch.Tensor:
    """Parts in an order; times (1 + parts) x B, or None for .7 and diffusers' own code."""
    torch.manual_seed(3)
    samples, order = 2, order or range(len(lengths))
    tokens = torch.split(torch.randn(samples, sum(lengths), 64), lengths, 1)
    ids = torch.split(torch.cat([flux.positions(part, (n, 1)) for part, n in enumerate(lengths)]), lengths)
    pooled, words = torch.randn(samples, 16), torch.randn(samples, 5, 16)
    level = torch.full((samples,), 0.7) if times is None else times[[0, *(1 + at for at in order)]].flatten()
    repeats = len(level) // samples
    made: torch.Tensor = model(
        hidden_states=torch.cat([tokens[at] for at in order], 1),
        timestep=level,
        guidance=torch.full((len(level),), 3.0),
        pooled_projections=pooled.repeat(repeats, 1),
        encoder_hidden_states=words,
        txt_ids=torch.zeros(5, 3),
        img_ids=torch.cat([ids[at] for at in order]),
        joint_attention_kwargs=None if times is None else per_token.parts(model, [lengths[at] for at in order]),
        return_dict=False,
    )[0]
    return made


@pytest.mark.parametrize("lengths", [[6], [4, 4], [3, 5, 2], [1, 2, 3, 4]])
def test_equal_times_are_the_stock_model(stock: Any, model: Any, lengths: list[int]) -> None:
    expected = forward(stock, lengths, None)
    assert torch.equal(forward(model, lengths, None), expected)  # without parts nothing has changed
    made, late = (forward(model, lengths, torch.full((1 + len(lengths), 2), time)) for time in (0.7, 0.701))
    assert_close(made, expected, terms=FORWARD, mutant=late)


def test_every_part_has_its_own_time(model: Any) -> None:
    """Parts may come in any order with their times; another time for one part, sample or the text is felt."""
    made, turned = forward(model, LENGTHS, TIMES), forward(model, LENGTHS, TIMES, order=[2, 0, 1])
    split = torch.split(made, LENGTHS, 1)
    assert_close(turned, torch.cat([split[2], split[0], split[1]], 1), terms=FORWARD, mutant=made)
    for part in range(4):
        other = TIMES.clone()
        other[part, 1] = 0.55
        changed = forward(model, LENGTHS, other)
        assert torch.equal(changed[0], made[0]) and error(changed[1], made[1]) > rounding(FORWARD)


def test_blocks_are_found_by_name(model: Any) -> None:
    """By FSDP, offloading and regional compilation."""
    assert {type(block).__name__ for block in model.modules()} >= set(model._no_split_modules)
    names = {type(block).__module__ for block in [*model.transformer_blocks, *model.single_transformer_blocks]}
    assert names == {per_token.__name__}


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's tracer looks at all
def test_checkpointing_and_tracing_change_nothing(model: Any) -> None:
    """Guards against times that are lost when blocks are run again, and blocks that cannot be compiled whole."""
    made, gradients = forward(model, LENGTHS, TIMES), []
    model.requires_grad_(True)
    late = TIMES + 0.001
    for way, times in (("enable", TIMES), ("disable", TIMES), ("disable", late)):
        getattr(model, f"{way}_gradient_checkpointing")()
        model.zero_grad()
        forward(model, LENGTHS, times).square().sum().backward()
        gradients.append(model.transformer_blocks[0].norm1.linear.weight.grad.clone())
    assert_close(gradients[0], gradients[1], terms=2 * FORWARD, mutant=gradients[2])
    wrong = forward(model, LENGTHS, late)
    model.compile_repeated_blocks(fullgraph=True, backend="eager")
    assert_close(forward(model, LENGTHS, TIMES), made, terms=FORWARD, mutant=wrong)

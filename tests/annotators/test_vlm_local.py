"""Captions and edits by a vision-language model in this process: batches, draws, and sizes of pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import GenerationConfig

from graphbuild.annotators.base import Skip
from graphbuild.annotators.vlm import fitted
from graphbuild.annotators.vlm_caption import VlmCaption
from graphbuild.annotators.vlm_edits import VlmBackground, VlmEdits
from graphbuild.models.vlm import Question
from graphbuild.models.vlm_local import LocalVlm, Settings, load_vlm
from tests.annotators.test_vlm import made, picture, request, text
from tests.support.tiny_checkpoints_vlm import (
    CAPTIONS,
    tiny_vlm,
    tiny_vlm_background,
    tiny_vlm_caption,
    tiny_vlm_edits,
)

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return tiny_vlm_caption(tmp_path_factory.mktemp("caption"))


def test_captions_of_all_sorts_of_pictures(checkpoint: dict[str, Any]) -> None:
    """Guards against pictures that no processor takes: tiny, odd, thin, grey."""
    shown = [picture(1, 16, 16), picture(2, 101, 67), picture(3, 4, 900), np.full((80, 80, 3), 128, np.uint8)]
    assert all(text(result) in CAPTIONS for result in made(VlmCaption(**checkpoint), *map(request, shown)))


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_batch_is_its_requests_one_by_one(checkpoint: dict[str, Any], temperature: float) -> None:
    """Guards against padding, or another row's random numbers, that change an answer."""
    annotator = VlmCaption(**checkpoint, temperature=temperature)
    requests = [request(picture(at, 60 + 20 * at, 100), seed=at) for at in range(8)]
    model = annotator.load("cpu")
    batch = [text(result) for result in annotator.annotate(requests, model)]
    assert batch == [text(annotator.annotate([each], model)[0]) for each in requests]
    assert temperature == 0 or len(set(batch)) > 1


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("temperature", [0.0, 3.0])
def test_long_answers_to_questions_of_many_lengths(tmp_path: Path, family: str, temperature: float) -> None:
    """Guards against left padding that shifts positions, in both generations of the family."""
    vlm = load_vlm(tiny_vlm(tmp_path, CAPTIONS, family=family), "cpu", "float32", 112)
    vlm.network.generation_config.eos_token_id = vlm.processor.tokenizer.eos_token_id  # words do not end the answer
    questions = [Question(picture(at, 56, 84), ("Describe " + "the " * 5 * at, "of", "a"), seed=at) for at in range(4)]
    batch = vlm.ask(questions, max_new_tokens=6, temperature=temperature)
    assert batch == [vlm.ask([each], max_new_tokens=6, temperature=temperature)[0] for each in questions]
    assert len(set(batch)) > 1


def test_draws_depend_on_the_request_alone(checkpoint: dict[str, Any]) -> None:
    """Guards against torch's global generator, in both directions."""
    annotator = VlmCaption(**checkpoint | {"temperature": 6.0})
    model = annotator.load("cpu")
    state = torch.random.get_rng_state()
    draws = [annotator.annotate([request(picture(1), seed=seed)], model) for seed in (*range(8), *range(8))]
    assert draws[:8] == draws[8:] and len({str(draw) for draw in draws}) > 2
    assert torch.equal(torch.random.get_rng_state(), state)


def through(processors: Any, scores: torch.Tensor) -> torch.Tensor:
    for process in processors:
        scores = process(torch.zeros(len(scores), 1, dtype=torch.long), scores)
    return scores


def test_draws_keep_to_the_words_that_the_checkpoint_leaves() -> None:
    """Guards against top-k, top-p and min-p of the model's authors that are lost where the draws are ours."""
    scores = torch.tensor([[3.0, 2.9, 1.0, -1.0]]).repeat(1000, 1)
    for own, left in (({"top_k": 3}, 3), ({"top_p": 0.8}, 2), ({"min_p": 0.5}, 2), ({}, 4)):
        settings = Settings.of(GenerationConfig(do_sample=True, temperature=0.1, **own)).at(1.0)
        drawn = through(settings.processors(range(1000)), scores)
        assert set(drawn.argmax(1).tolist()) == set(range(left))


def test_a_checkpoints_own_settings(tmp_path: Path) -> None:
    """Guards against draws where its authors take the likeliest, the likeliest where they draw, and lost penalties."""
    folder = tiny_vlm(tmp_path, CAPTIONS)
    config = GenerationConfig.from_pretrained(folder)
    for own, temperature in (({}, 0.0), ({"do_sample": True, "temperature": 0.3, "repetition_penalty": 1.7}, 0.3)):
        config.update(**own)
        config.save_pretrained(folder)
        vlm = load_vlm(folder, "cpu", "float32", 112)
        assert vlm.settings.temperature == temperature == vlm.settings.at(None).temperature
    assert vlm.network.generation_config.repetition_penalty == 1.7
    asked = [Question(picture(1, 56, 84), ("Describe",), seed=seed) for seed in range(30)]
    hot = replace(vlm, settings=vlm.settings.at(6.0))
    assert len(set(hot.ask(asked, max_new_tokens=2, temperature=None))) > 2
    assert len(set(hot.ask(asked, max_new_tokens=2, temperature=0))) == 1


def test_an_answer_that_fills_all_it_may_is_cut_off(checkpoint: dict[str, Any]) -> None:
    """Guards against captions without an end, in this process too."""
    annotator = VlmCaption(**checkpoint)
    vlm: LocalVlm = annotator.load("cpu")
    vlm.network.generation_config.eos_token_id = vlm.processor.tokenizer.eos_token_id
    assert annotator.annotate([request(picture(1))], vlm) == [Skip("length")]


def test_draws_follow_the_temperature() -> None:
    """Guards against noise of the wrong shape: words are drawn from softmax(scores / temperature)."""
    scores = torch.tensor([[2.0, 0.0, 1.0]]).repeat(4000, 1)
    drawn = through(Settings(temperature=2.0).processors(range(4000)), scores).argmax(1)
    shares = torch.bincount(drawn, minlength=3) / 4000
    assert torch.allclose(shares, torch.softmax(scores[0] / 2, 0), atol=0.03)


@given(height=st.integers(1, 3000), width=st.integers(1, 3000), max_side=st.integers(56, 1500))
def test_fitted_sides(height: int, width: int, max_side: int) -> None:
    """Guards against sizes that a processor resamples once more, after which boxes are off."""
    sides = fitted(np.zeros((height, width, 3), np.uint8), max_side).shape[:2]
    assert all(side % 28 == 0 and 56 <= side <= max_side for side in sides)
    scale = min(1.0, max_side / max(height, width))
    assert all(abs(got - side * scale) <= 28 or got == 56 for got, side in zip(sides, (height, width), strict=True))


@pytest.mark.parametrize("max_side", [112, 980, 1260])
def test_the_processor_leaves_fitted_pictures_as_they_are(checkpoint: dict[str, Any], max_side: int) -> None:
    vlm: LocalVlm = VlmCaption(**checkpoint | {"max_side": max_side}).load("cpu")
    for shape in ((16, 16), (2000, 1900), (300, 40)):
        shown = fitted(np.zeros((*shape, 3), np.uint8), max_side)
        grid = vlm.processor.image_processor([shown], return_tensors="pt")["image_grid_thw"]
        assert (grid[0, 1:] * 14).tolist() == list(shown.shape[:2])


def test_edits_and_backgrounds_in_this_process(tmp_path: Path) -> None:
    edits, backgrounds = (
        VlmEdits(**tiny_vlm_edits(tmp_path / "a")),
        VlmBackground(**tiny_vlm_background(tmp_path / "b")),
    )
    requests = [request(picture(at), variant=at, seed=at) for at in range(5)]
    for result in made(edits, *requests):
        assert text(result).startswith("A ") and result.attrs["subject"][2:] in text(result)
        assert result.nodes["edit_instruction"] == f"Put {result.attrs['subject']} in its place."
    for result in made(backgrounds, *requests):
        assert text(result).endswith(f"{result.attrs['background']}.")


def test_the_identity_of_local_weights(checkpoint: dict[str, Any]) -> None:
    identity = VlmCaption(**checkpoint).identity()
    assert identity is not None and identity.startswith("files:")

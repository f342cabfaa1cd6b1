"""Captions and edits by a vision-language model, in this process and behind a server."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import GenerationConfig

from graphbuild.annotators import resolve
from graphbuild.annotators.base import Derived, Request, Resources, Skip, config_of, params_of
from graphbuild.annotators.vlm import MODEL, UnreadableAnswer, VlmAnnotator, fitted
from graphbuild.annotators.vlm_caption import VlmCaption
from graphbuild.annotators.vlm_edits import VlmBackground, VlmEdits
from graphbuild.contracts import Item
from graphbuild.errors import MissingWeights
from graphbuild.images.codecs import Pixels
from graphbuild.images.node import Node
from graphbuild.models.vlm import Question
from graphbuild.models.vlm_local import LocalVlm, Settings, load_vlm
from graphbuild.store.graph import Graph
from tests.support.annotators import build, complete
from tests.support.openai_server import MALFORMED, REFUSAL, ChatServer, chat_server
from tests.support.tiny_checkpoints_vlm import (
    CAPTIONS,
    tiny_vlm,
    tiny_vlm_background,
    tiny_vlm_caption,
    tiny_vlm_edits,
)

torch.set_num_threads(1)


def picture(seed: int, height: int = 90, width: int = 120) -> Pixels:
    """A gradient with a few coloured squares, another for each seed."""
    rng = np.random.default_rng(seed)
    shown = np.add.outer(np.linspace(0, 90, height), np.linspace(0, 90, width))[:, :, None] * rng.random(3)
    for _ in range(6):
        top, left = rng.integers(0, height), rng.integers(0, width)
        shown[top : top + height // 3, left : left + width // 3] = rng.integers(0, 256, 3)
    return shown.astype(np.uint8)


def request(shown: Pixels, *, caption: str = "A cat on a chair.", variant: int = 0, seed: int = 0) -> Request:
    item = Item(0, "id", "key", None, None, None, None, None)
    words = Node(0, "caption", 0, "v0", caption.encode(), "text", "text")
    return Request(item, {"image": Node.computed(0, "image", shown), "caption": words}, variant, seed)


def made(annotator: VlmAnnotator, *requests: Request) -> list[Any]:
    return list(annotator.annotate(requests, annotator.load("cpu")))


def text(result: Any) -> str:
    assert isinstance(result, Derived), result
    value = next(iter(result.nodes.values()))
    assert isinstance(value, str)
    return value


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return tiny_vlm_caption(tmp_path_factory.mktemp("caption"))


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with chat_server() as started:
        yield started


def behind(server: ChatServer) -> dict[str, Any]:
    return {"server": server.url, "server_version": "1", "model": server.model}


# ---- in this process ---------------------------------------------------------------------------------------------


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


# ---- what is asked, and what is made of the answer ---------------------------------------------------------------


def test_a_caption_is_one_clean_line(server: ChatServer) -> None:
    (result,) = made(VlmCaption(**behind(server)), request(picture(1)))
    assert text(result).endswith("picture, 112 pixels wide and 84 high.")
    server.order("", "say:One.\n\n  Two.\t Three. ")
    assert text(made(VlmCaption(**behind(server)), request(picture(1)))[0]) == "One. Two. Three."


@pytest.mark.parametrize("words", [REFUSAL, "I cannot describe this picture.", "Sorry, no.", "As an AI, I do not."])
@pytest.mark.parametrize("annotator", [VlmCaption, VlmEdits, VlmBackground])
def test_a_refusal_is_skipped(server: ChatServer, annotator: type[VlmAnnotator], words: str) -> None:
    """Guards against an apology stored as a caption, or paid for twice as malformed JSON."""
    server.order("", f"say:{words}", f"say:{words}")
    assert made(annotator(**behind(server)), request(picture(1))) == [Skip("refused")] and len(server.asked) == 1


@pytest.mark.parametrize("annotator", [VlmCaption, VlmEdits, VlmBackground])
def test_an_answer_that_is_cut_off_is_skipped_as_such(server: ChatServer, annotator: type[VlmAnnotator]) -> None:
    """Guards against half a sentence stored as a caption, and against a second request that ends no later."""
    server.order("", 'cut:{"subject": "a kite", "background": "sky", "caption": "A ki')
    assert made(annotator(**behind(server)), request(picture(1))) == [Skip("length")] and len(server.asked) == 1


def test_thinking_is_no_part_of_a_caption(server: ChatServer) -> None:
    server.order(
        "", "say:<think>Is it a cat? I cannot say.</think>\n```\nA cat.\n```", "say:<think>Is it", "cut:<think>Is"
    )
    results = [made(VlmCaption(**behind(server)), request(picture(1)))[0] for _ in range(3)]
    assert text(results[0]) == "A cat." and results[1:] == [Skip("no_caption"), Skip("length")]


def test_edits_are_held_to_a_schema(server: ChatServer) -> None:
    """Guards against a schema that does not ask for what is read."""
    made(VlmEdits(**behind(server)), request(picture(1)))
    schema = server.asked[0]["response_format"]["json_schema"]["schema"]
    assert set(schema["required"]) == set(schema["properties"]) == {"subject", "caption", "instruction"}


def test_the_last_of_several_edits_counts(server: ChatServer) -> None:
    """Guards against the first thought of a model that thinks aloud."""
    ideas = [
        {"subject": f"a {name}", "caption": f"A {name}.", "instruction": f"Add a {name}."} for name in ("fox", "cat")
    ]
    server.order("", f"say:First {json.dumps(ideas[0])}. No: {json.dumps(ideas[1])[:-1]},}} That is all, {{}}.")
    (result,) = made(VlmEdits(**behind(server)), request(picture(1)))
    assert result.nodes == {"edit_text": "A cat.", "edit_instruction": "Add a cat."}


def test_no_caption(server: ChatServer) -> None:
    server.order("", "empty")
    assert made(VlmCaption(**behind(server)), request(picture(1))) == [Skip("no_caption")]


def test_variants_differ_and_say_what_is_new(server: ChatServer) -> None:
    """Guards against five times the same edit, and the old caption stored instead of the new."""
    requests = [request(picture(1), caption="A dog {number}.", variant=at, seed=at) for at in range(5)]
    results = made(VlmEdits(**behind(server)), *requests)
    assert len({text(result) for result in results}) == 5
    assert [result.attrs for result in results] == [{"subject": f"toy number {at}"} for at in range(1, 6)]
    assert [result.nodes["edit_instruction"] for result in results] == [
        f"Put toy number {at} there." for at in range(1, 6)
    ]
    assert server.tries("has the caption: A dog {number}.\n") == 5


def test_more_variants_leave_the_first_as_they_are(server: ChatServer) -> None:
    """Guards against a question that depends on a number that is not in the version."""
    for variants in (5, 8):
        made(VlmEdits(**behind(server), variants=variants), request(picture(1), variant=2, seed=3))
    assert server.asked[0] == server.asked[1]
    assert params_of(VlmEdits(variants=5)) == params_of(VlmEdits(variants=8))


def test_backgrounds_keep_the_subject_in_the_question(server: ChatServer) -> None:
    (result,) = made(VlmBackground(**behind(server)), request(picture(1)))
    assert text(result).startswith("The same, on beach 1") and result.attrs == {"background": "beach 1"}
    assert result.nodes["background_instruction"] == "Take it to beach 1."
    assert server.tries("same subject, unchanged") == 1


def test_a_malformed_answer_is_asked_for_once_more(server: ChatServer) -> None:
    """Guards against a lost row where a second try mends it, and a second try that does not know the first."""
    server.order("red", "malformed")
    requests = [request(picture(at), caption=f"A {name} door.") for at, name in enumerate(("red", "blue"))]
    assert [isinstance(result, Derived) for result in made(VlmEdits(**behind(server)), *requests)] == [True, True]
    first, again = (body["messages"] for body in server.asked if "red" in str(body["messages"][0]))
    assert again[0] == first[0] and again[1] == {"role": "assistant", "content": MALFORMED.strip()}
    assert "JSON" in again[2]["content"] and server.tries("blue") == 1


WRONG = (
    *("malformed", "say:nothing", 'say:{"subject": "a kite"}', 'say:["x"]'),
    *(f'say:{{"subject": "{new}", "caption": "x", "instruction": "{do}"}}' for new, do in (("", "y"), ("z", " "))),
)


@pytest.mark.parametrize("wrong", WRONG)
def test_an_answer_that_stays_malformed_costs_one_row(server: ChatServer, wrong: str) -> None:
    server.order("red", wrong, wrong, wrong)
    requests = [request(picture(at), caption=f"A {name} door.") for at, name in enumerate(("red", "blue"))]
    bad, good = made(VlmEdits(**behind(server)), *requests)
    assert isinstance(bad, UnreadableAnswer) and isinstance(good, Derived) and server.tries("red") == 2


def test_a_refusal_in_the_second_try_is_skipped(server: ChatServer) -> None:
    server.order("", "malformed", "refusal")
    assert made(VlmEdits(**behind(server)), request(picture(1))) == [Skip("refused")]


# ---- versions, weights and resources -----------------------------------------------------------------------------


def test_the_version_knows_what_changes_an_answer() -> None:
    """Guards against a graph that is computed again for a time-out, or not again for another prompt."""
    same: list[dict[str, Any]] = [
        {"in_flight": 3, "timeout_s": 1.0, "tries": 2, "api_key_env": "X"},
        {"resources": Resources(batch_size=3)},
    ]
    other: list[dict[str, Any]] = [
        {"prompt": "?"},
        {"max_side": 56},
        {"temperature": 0.5},
        {"max_new_tokens": 9},
        {"dtype": "float32"},
    ]
    assert all(params_of(VlmCaption(**changed)) == params_of(VlmCaption()) for changed in same)
    assert all(params_of(VlmCaption(**changed)) != params_of(VlmCaption()) for changed in other)


def test_the_identity_of_local_weights(checkpoint: dict[str, Any]) -> None:
    identity = VlmCaption(**checkpoint).identity()
    assert identity is not None and identity.startswith("files:")


def test_missing_weights_are_named_with_the_command_that_gets_them() -> None:
    lines = VlmCaption().missing()
    assert len(lines) == 1 and MODEL in lines[0] and "apache-2.0" in lines[0] and "models fetch" in lines[0]
    with pytest.raises(MissingWeights):
        VlmCaption().load("cpu")


def test_the_identity_of_a_server_needs_no_weights() -> None:
    """Guards against a version that depends on the address, and one that does not depend on the server's weights."""
    identities = {
        VlmCaption(server=f"http://{host}/v1", server_version=version).identity()
        for host in ("a", "b:8000")
        for version in ("1", "2 b")
    }
    assert identities == {f"{MODEL}@server:1", f"{MODEL}@server:2_b"}
    with chat_server(revision="abc") as server:
        assert VlmCaption(server=server.url, model=server.model).identity() == f"{server.model}@server:abc"


def test_a_server_that_does_not_say_what_it_runs(server: ChatServer) -> None:
    with pytest.raises(MissingWeights, match="server_version"):
        VlmCaption(server=server.url, model=server.model).identity()


def test_a_server_needs_no_gpu() -> None:
    """Guards against actors that wait for GPUs they do not use; what the user says counts."""
    asked = VlmCaption(server="http://a/v1", in_flight=5).resources
    assert (asked.memory_gb, asked.gpus, asked.batch_size) == (0, 0, 20) and asked.cpus < 1
    annotator = resolve("vlm_caption", {"server": "http://a/v1", "resources": {"cpus": 2, "batch_size": 7}})
    assert (annotator.resources.memory_gb, annotator.resources.cpus, annotator.resources.batch_size) == (0, 2, 7)
    assert dataclasses.replace(annotator, model="b").resources == annotator.resources
    assert VlmCaption().resources.memory_gb > 16


@pytest.mark.parametrize("address", ["http://user:s3cret@host/v1", "host:8000", "ftp://host", "http:///v1"])
def test_an_address_that_cannot_be_stored_is_refused(address: str) -> None:
    """Guards against a password in the graph: the configuration is part of every commit."""
    with pytest.raises(ValueError, match="server: allowed") as caught:
        VlmCaption(server=address)
    assert "s3cret" not in str(caught.value)


def test_the_configuration_holds_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "s3cret")
    assert "s3cret" not in str(config_of(VlmCaption(server="http://a/v1", api_key_env="SOME_KEY")))


# ---- in a graph --------------------------------------------------------------------------------------------------


def test_a_graph_of_words(tmp_path: Path, photos: Path, server: ChatServer) -> None:
    """Guards against paid answers asked for twice because another row of the batch failed."""
    out, use = tmp_path / "graph", behind(server) | {"tries": 2}
    server.order("Describe this picture", "500", "refusal", "policy", "empty", "400")
    server.order("idea number 4", "malformed")
    server.order("Answer once more", "malformed")
    annotators = [VlmCaption(**use, in_flight=1), VlmEdits(**use), VlmBackground(**use)]
    report = complete(build(photos, out, annotators, limit=8, shard_size=8))
    reasons = {name: done.reasons for name, done in report.annotators.items()}
    assert reasons["vlm_caption"] == {"skipped:refused": 2, "skipped:no_caption": 1, "failed:error": 1}
    assert reasons["vlm_edits"] == {"skipped:parent_skipped": 30, "skipped:parent_failed": 10, "failed:error": 2}
    assert report.annotators["vlm_background"].ok == 8  # of both kinds
    assert server.tries("Describe this picture") == 8 + 1 and server.tries("Invent another picture, in which") == 20 + 1
    graph = Graph.open(out)
    details = {edge["detail"] for edge in graph.edges(kind="edit_text").to_pylist() if edge["status"] == "failed"}
    assert len(details) == 1 and "UnreadableAnswer" in details.pop()
    last = [edge for edge in graph.edges(kind="edit_text").to_pylist() if edge["status"] == "ok"][-1]
    node = graph.read(last["item_ix"], "edit_text", last["variant"])
    assert node.text.startswith("Toy number") and node.attrs["subject"].startswith("toy number")


def test_another_server_version_is_another_version(tmp_path: Path, photos: Path, server: ChatServer) -> None:
    """Guards against a graph that never notices the server's new weights, or asks again when nothing changed."""
    for version, asked in (("1", 2), ("1", 2), ("2", 4)):
        build(photos, tmp_path / "g", [VlmCaption(**behind(server) | {"server_version": version})], limit=2)
        assert len(server.asked) == asked

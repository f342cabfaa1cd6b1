"""Captions and edits by a vision-language model behind a server: questions, answers, versions and whole graphs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from graphbuild.annotators import resolve
from graphbuild.annotators.base import Derived, Request, Resources, Skip, config_of, params_of
from graphbuild.annotators.vlm import MODEL, UnreadableAnswer, VlmAnnotator
from graphbuild.annotators.vlm_caption import VlmCaption
from graphbuild.annotators.vlm_edits import VlmBackground, VlmEdits
from graphbuild.contracts import Item
from graphbuild.errors import MissingWeights
from graphbuild.images.codecs import Pixels
from graphbuild.images.node import Node
from graphbuild.store.graph import Graph
from tests.support.annotators import build, complete
from tests.support.openai_server import MALFORMED, REFUSAL, ChatServer, chat_server

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


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with chat_server() as started:
        yield started


def behind(server: ChatServer) -> dict[str, Any]:
    return {"server": server.url, "server_version": "1", "model": server.model}


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

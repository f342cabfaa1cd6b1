"""Asking a vision-language model behind a server: order, parallel requests, and everything that can go wrong."""

from __future__ import annotations

import email.utils
import io
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from graphbuild.errors import GraphError
from graphbuild.models.vlm import Cut, Question, Refused
from graphbuild.models.vlm_server import ServerFault, VlmServer
from tests.support.openai_server import ChatServer, chat_server, picture_bytes

PICTURE = np.full((56, 84, 3), (200, 30, 30), np.uint8)


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with chat_server() as started:
        yield started


def client(server: ChatServer, **options: Any) -> VlmServer:
    return VlmServer(
        address=server.url, model=server.model, **{"pause_s": 0.01, "tries": 3, "timeout_s": 30, **options}
    )


def ask(vlm: VlmServer, *words: str, temperature: float | None = 0.0, schema: Any = None) -> list[Any]:
    questions = [Question(PICTURE, (text,), seed=2**40 + at) for at, text in enumerate(words)]
    return vlm.ask(questions, max_new_tokens=50, temperature=temperature, schema=schema)


# ---- what is sent ------------------------------------------------------------------------------------------------


def test_a_request_is_a_picture_and_words(server: ChatServer) -> None:
    """Guards against a picture sent with swapped channels or in another size, and settings that are not sent."""
    vlm = client(server)
    question = Question(PICTURE, ("first", "answer", "second"), seed=2**62)
    vlm.ask([question], max_new_tokens=77, temperature=0.5)
    (body,) = server.asked
    assert body["model"] == server.model and body["max_tokens"] == 77 and body["temperature"] == 0.5
    assert [message["role"] for message in body["messages"]] == ["user", "assistant", "user"]
    assert [message["content"] for message in body["messages"][1:]] == ["answer", "second"]
    with Image.open(io.BytesIO(picture_bytes(body))) as sent:
        assert sent.size == (84, 56) and np.abs(np.asarray(sent).astype(int) - PICTURE).max() <= 8


def test_seeds_are_sent_when_something_is_drawn(server: ChatServer) -> None:
    """Guards against equal seeds for all requests, and seeds beyond what servers take."""
    ask(client(server), "one", "two", temperature=0.7)
    ask(client(server), "three")
    drawn, greedy = server.asked[:2], server.asked[2]
    assert len({body["seed"] for body in drawn}) == 2 and all(0 <= body["seed"] < 2**31 for body in drawn)
    assert "seed" not in greedy and greedy["temperature"] == 0


def test_the_servers_own_settings_are_left_to_it(server: ChatServer) -> None:
    """Guards against a temperature of ours in place of what the model's authors advise."""
    ask(client(server), "one", temperature=None)
    assert "temperature" not in server.asked[0] and "seed" in server.asked[0]


SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}


def test_a_schema_is_sent(server: ChatServer) -> None:
    ask(client(server), "one", schema=SCHEMA)
    form = server.asked[0]["response_format"]
    assert form["type"] == "json_schema" and form["json_schema"]["schema"] == SCHEMA


def test_a_server_without_schemas_is_asked_without() -> None:
    """Guards against rows that fail at a server that takes no schema, and each of them asked twice."""
    with chat_server(schemas=False) as server:
        vlm = client(server, in_flight=1)
        assert all(isinstance(reply, str) for reply in ask(vlm, "one", "two", "three", schema=SCHEMA))
        assert ["response_format" in body for body in server.asked] == [True, False, False, False]


def test_a_request_that_is_bad_anyhow_leaves_the_schema(server: ChatServer) -> None:
    """Guards against a server that loses its schema for all rows because one picture was refused."""
    server.order("bad", "400", "400")
    bad, good = ask(client(server, in_flight=1), "bad day", "good day", schema=SCHEMA)
    assert isinstance(bad, ServerFault) and isinstance(good, str) and "response_format" in server.asked[-1]


@pytest.mark.parametrize("address", ["/v1", "/v1/", "", "/"])
def test_the_address_may_leave_out_v1(server: ChatServer, address: str) -> None:
    root = server.url.removesuffix("/v1")
    assert isinstance(ask(VlmServer(address=root + address, model=server.model), "hello")[0], str)


def test_the_key_comes_from_the_environment_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Guards against a key in the configuration, and against ~/.netrc in its place."""
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login somebody password else\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("SOME_KEY", "s3cret")
    with chat_server(key="s3cret") as server:
        vlm = client(server, key_from="SOME_KEY")
        assert isinstance(ask(vlm, "hello")[0], str) and "s3cret" not in repr(vlm)
        monkeypatch.delenv("SOME_KEY")
        with pytest.raises(GraphError, match="SOME_KEY"):
            ask(client(server, key_from="SOME_KEY"), "hello")


def test_replies_keep_their_order_and_requests_run_at_once() -> None:
    """Guards against one request after another, more at once than allowed, and replies given to the wrong rows."""
    with chat_server(together=4) as server:
        for at in range(12):
            server.order(f"question {at}.", f"say:answer {at}")
        replies = ask(client(server, in_flight=4), *(f"question {at}." for at in range(12)))
    assert replies == [f"answer {at}" for at in range(12)]
    assert server.most_in_flight == 4


# ---- what goes wrong ---------------------------------------------------------------------------------------------


def _enough(trouble: str) -> float:
    """A time-out that only a server which hangs exceeds, however busy the machine is."""
    return 3.0 if trouble == "hang" else 30.0


@pytest.mark.parametrize("trouble", ["429", "429:0", "429:soon", "500", "503", "408", "drop", "half", "hang"])
def test_trouble_that_passes_is_tried_again(server: ChatServer, trouble: str) -> None:
    """Guards against rows lost to a busy server, a time-out or a connection that broke in the middle."""
    server.order("bad", trouble)
    bad, good = ask(client(server, timeout_s=_enough(trouble)), "bad day", "good day")
    assert isinstance(bad, str) and isinstance(good, str)
    assert (server.tries("bad"), server.tries("good")) == (2, 1)


@pytest.mark.parametrize("trouble", ["429:0", "500", "drop", "half", "hang"])
def test_trouble_that_stays_costs_one_row(server: ChatServer, trouble: str) -> None:
    """Guards against an endless loop, and against a whole batch lost, or paid again, for one request."""
    server.order("bad", *[trouble] * 9)
    bad, good = ask(client(server, timeout_s=_enough(trouble)), "bad day", "good day")
    assert isinstance(bad, ServerFault) and "3 tries" in str(bad) and server.url not in str(bad)
    assert isinstance(good, str) and (server.tries("bad"), server.tries("good")) == (3, 1)


@pytest.mark.parametrize("how", ["seconds", "date"])
def test_a_pause_that_the_server_asks_for_is_kept(
    server: ChatServer, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against a Retry-After header that is read and not obeyed."""
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    asked = "50" if how == "seconds" else email.utils.formatdate(time.time() + 50, usegmt=True)
    server.order("bad", f"429:{asked}")
    ask(client(server), "bad day")
    assert len(pauses) == 1 and 20 < pauses[0] <= 50


def test_no_pause_is_longer_than_a_minute(server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a worker that sleeps for the hour a server asks for."""
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    server.order("bad", "429:3600", *["500"] * 8)
    ask(client(server, tries=10, pause_s=1.0), "bad day")
    assert pauses[0] == 60 and len(pauses) == 9 and max(pauses) <= 60 and 0 < pauses[1] < pauses[3] < pauses[5]


@pytest.mark.parametrize("status", ["400", "401", "404", "422"])
def test_a_request_that_is_refused_for_good_is_sent_once(server: ChatServer, status: str) -> None:
    server.order("bad", *[status] * 9)
    bad, good = ask(client(server), "bad day", "good day")
    assert isinstance(bad, ServerFault) and f"HTTP {status}" in str(bad) and isinstance(good, str)
    assert server.tries("bad") == 1


def test_a_wrong_key_is_not_repeated_in_the_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a key in the detail of an edge, which anyone with the graph can read."""
    monkeypatch.setenv("SOME_KEY", "s3cret")
    with chat_server(key="other") as server:
        (fault,) = ask(client(server, key_from="SOME_KEY"), "hello")
    assert isinstance(fault, ServerFault) and "401" in str(fault) and "s3cret" not in str(fault)


ECHOES = {
    "refused": '400 {"error": {"message": "no key KEY here"}}',
    "page": "200 <html>KEY</html>",
    "odd": '200 {"odd": "KEY"}',
    "said": '200 {"choices": [{"message": {"content": "I was sent KEY"}}]}',
    "at the end": "400 " + "x" * 190 + "KEY",
}


@pytest.mark.parametrize("key", ["sk-0123456789abcdef", 'sk-"quoted"/\\slashed'])
@pytest.mark.parametrize("echo", ECHOES.values(), ids=ECHOES)
def test_a_key_that_the_server_repeats_is_masked(
    server: ChatServer, echo: str, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against a key in a node, or in the detail of a row, which anyone with the graph can read."""
    monkeypatch.setenv("SOME_KEY", key)
    server.order("bad", "raw:" + echo.replace("KEY", json.dumps(key)[1:-1]))
    (reply,) = ask(client(server, key_from="SOME_KEY"), "bad day")
    assert "sk-" not in str(reply) and key not in repr(reply)


def test_a_placeholder_is_not_masked_in_what_a_model_says(server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against holes in captions where a local server is given the key `a`."""
    monkeypatch.setenv("SOME_KEY", "a")
    server.order("bad", "say:a cat on a mat")
    assert ask(client(server, key_from="SOME_KEY"), "bad day") == ["a cat on a mat"]


def test_a_proxy_of_the_environment_is_used(server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against workers behind a proxy that can reach no server."""
    monkeypatch.setenv("http_proxy", server.url.removesuffix("/v1"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    far = VlmServer(address="http://models.invalid/v1", model=server.model, tries=1)
    assert isinstance(ask(far, "hello")[0], str)
    assert server.headers[-1]["Host"] == "models.invalid"


@pytest.mark.parametrize("how", ["refusal_field", "filtered", "policy"])
def test_a_refusal_is_no_failure(server: ChatServer, how: str) -> None:
    """Guards against a picture that the server will not look at being tried again on every retry."""
    server.order("bad", how)
    (reply,) = ask(client(server), "bad day")
    assert isinstance(reply, Refused) and server.tries("bad") == 1


def test_an_answer_that_is_cut_off_is_known_as_such(server: ChatServer) -> None:
    """Guards against half a caption stored as one."""
    server.order("bad", "cut:A dog that")
    assert ask(client(server), "bad day") == [Cut("A dog that")]


def test_thinking_that_is_a_part_of_its_own_is_left_out(server: ChatServer) -> None:
    content = [{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "A dog."}]
    server.order("", f"raw:200 {json.dumps({'choices': [{'message': {'content': content}}]})}")
    assert ask(client(server), "one") == ["A dog."]


@pytest.mark.parametrize("how", ["html", "no_choices"])
def test_what_is_no_completion_is_a_fault(server: ChatServer, how: str) -> None:
    """Guards against a proxy's page stored as a caption."""
    server.order("bad", how)
    assert isinstance(ask(client(server), "bad day")[0], ServerFault)


# ---- before work starts ------------------------------------------------------------------------------------------


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_what_is_missing_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a run that starts, and fails row by row, for a typing error in its configuration."""
    with chat_server(key="s3cret") as locked, chat_server() as server:
        assert client(server).missing(declared=True) == []
        monkeypatch.setenv("SOME_KEY", "s3cret")
        assert client(locked, key_from="SOME_KEY").missing(declared=True) == []
        wrong = {
            "does not answer": VlmServer(address=f"http://127.0.0.1:{closed_port()}/v1", model=server.model),
            "other/model": VlmServer(address=server.url, model="other/model"),
            "HTTP 401": client(locked),
            "NO_SUCH_KEY": client(locked, key_from="NO_SUCH_KEY"),
        }
        for words, vlm in wrong.items():
            (line,) = vlm.missing(declared=True)
            assert words in line and "\n" not in line
        (line,) = client(server).missing(declared=False)
        assert "server_version" in line


def test_a_server_may_say_its_version() -> None:
    with chat_server(revision="abc123") as server:
        assert client(server).version() == "abc123" and client(server).missing(declared=False) == []
        assert VlmServer(address=server.url, model="other").version() is None


# ---- a real server -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_transformers_serve(tmp_path: Path, photos: Path) -> None:
    """Guards against an idea of the interface that only our own test server shares."""
    if absent := [name for name in ("fastapi", "uvicorn", "openai") if find_spec(name) is None]:
        pytest.skip(f"transformers serve needs {', '.join(absent)}: pip install 'transformers[serving]'")
    from tests.support.tiny_checkpoints_vlm import CAPTIONS, tiny_vlm

    model, port = str(tiny_vlm(tmp_path / "vlm", CAPTIONS)), closed_port()
    program = "from transformers.cli.transformers import main; main()"
    command = [sys.executable, "-c", program, "serve", model, "--port", str(port), "--device", "cpu"]
    process = subprocess.Popen(command, env=os.environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        vlm = VlmServer(address=f"http://localhost:{port}", model=model, tries=8, pause_s=1.0)
        replies = vlm.ask([Question(PICTURE, ("Describe the picture",))], max_new_tokens=1, temperature=0.0)
    finally:
        process.kill()
        process.wait()
    (reply,) = replies  # the server also spells out where the answer of this tokenizer begins
    said = reply.words if isinstance(reply, Cut) else reply
    assert isinstance(said, str) and said.endswith(tuple(CAPTIONS)), replies

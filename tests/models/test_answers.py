"""Reading what language models answer: examples of every habit they have, and properties over random values."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphbuild.models.answers import lists_in, objects_in, words_of

CAT, DOG = {"bbox_2d": [1, 2, 30, 40], "label": "cat"}, {"bbox_2d": [5, 6, 70, 80], "label": "dog, [big]"}
BOTH = json.dumps([CAT, DOG])

PROSE = st.text('aB \n",:\\1\u00fc\u4e2d\u2019', max_size=20)
"""Words around an answer, without what begins JSON, a fence or a thinking part."""
TEXT = st.text('aB \n",:\\1\u00fc\u4e2d[]{}', max_size=12)
LEAVES = st.none() | st.integers(-999, 999) | TEXT
VALUES = LEAVES | st.lists(LEAVES, max_size=3) | st.dictionaries(TEXT, LEAVES, max_size=2)
OBJECTS = st.dictionaries(TEXT, VALUES, min_size=1, max_size=3)


def first(values: Any) -> Any:
    return next(iter(values), None)


# ---- words -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("  A cat.\n", "A cat."),
        ("<think>A dog? No.</think>\n\nA cat.", "A cat."),
        ("A dog? No.</think>A cat.", "A cat."),
        ("<THINK>a</THINK> A cat <thinking>b</thinking>.", "A cat ."),
        ("<think>It is a", ""),
        ("[THINK]a[/THINK]A cat.", "A cat."),
        ("\u25c1think\u25b7a\u25c1/think\u25b7A cat.", "A cat."),
        ("<think>a</think><answer>A cat.</answer>", "A cat."),
        ("```\nA cat.\n```", "A cat."),
        ("```text\nA cat.", "A cat."),
        ("A `cat` is < a dog [sic].", "A `cat` is < a dog [sic]."),
    ],
)
def test_words_without_thinking(answer: str, words: str) -> None:
    """Guards against a caption that begins with what a model said to itself."""
    assert words_of(answer) == words


@given(thought=PROSE, words=PROSE.map(str.strip))
def test_any_thought_is_left_out(thought: str, words: str) -> None:
    assert words_of(f"<think>{thought}</think>{words}") == words_of(f"{thought}</think>{words}") == words


# ---- JSON --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        BOTH,
        f"```json\n{BOTH}\n```",
        f"Here they are:\n```\n{BOTH}\n```\nThe boxes are [approximate]. {{}}",
        f"<think>Is it {json.dumps([DOG])}? No.</think>{BOTH}",
        f'First idea: [{{"label": "fox", "bbox_2d": [0, 0, 1, 1]}}]. Better: {BOTH}',
        f"{json.dumps(CAT)}\n{json.dumps(DOG)}",
        f"1. {json.dumps(CAT)}\n2. {json.dumps(DOG)}",
        f"{json.dumps(CAT)},\n{json.dumps(DOG)},",
        f"[\n  {json.dumps(CAT)},\n  {json.dumps(DOG)},\n]",
        BOTH.replace("40]", "40 , ]"),
        BOTH.replace('"cat"', '"cat",'),
        BOTH[:-1],
        BOTH[:-1] + ', {"bbox_2d": [9, 9',
        BOTH[:-1] + ', {"bbox_2d": [9, 9, 10, 10], "lab',
        '{"objects": ' + BOTH[:-1] + ', {"bbox_2d": [],',
        f"```json\n{BOTH[:-1]}, ",
    ],
)
def test_a_list_of_objects_in_every_wrapping(answer: str) -> None:
    """Guards against rows that are lost for a comma, and against half an object that counts."""
    assert first(lists_in(answer)) == [CAT, DOG]


def test_one_object_is_given_as_itself() -> None:
    """Guards against an object that holds the list, taken for the only entry of it."""
    assert first(lists_in(f'{{"objects": {BOTH}}}')) == {"objects": [CAT, DOG]}
    assert first(lists_in(json.dumps(CAT))) == CAT and first(lists_in("None: []")) == []


@pytest.mark.parametrize(
    "answer",
    [
        json.dumps(CAT),
        f"Not {json.dumps(DOG)}, but {json.dumps(CAT)}",
        f"```json\n{json.dumps(CAT)}\n```\nwhich is no {json.dumps(DOG)}",
        f"```\n{json.dumps(DOG)}\n```\nor\n```\n{json.dumps(CAT)}\n```",
        f'Fill in {{"label": ...}}: {json.dumps(CAT)}',
    ],
)
def test_the_object_that_is_meant(answer: str) -> None:
    assert first(objects_in(answer)) == CAT


def test_line_breaks_in_strings() -> None:
    assert first(objects_in('{"caption": "one\ntwo\tthree"}')) == {"caption": "one\ntwo\tthree"}


@pytest.mark.parametrize("answer", ["", "no", "{}}{"[2:], '{"a": ', '{"a": "cut of', "[see", "{'a': 1}"])
def test_what_is_no_whole_object(answer: str) -> None:
    """Guards against invented endings: a caption that is cut off is none."""
    assert list(objects_in(answer)) == []


@settings(max_examples=60)
@given(value=OBJECTS, before=PROSE, after=PROSE, indent=st.sampled_from([None, 1]))
def test_any_object_comes_back(value: dict[str, Any], before: str, after: str, indent: int | None) -> None:
    written = json.dumps(value, indent=indent, ensure_ascii=False)
    assert first(objects_in(f"{before}{written}{after}")) == value
    assert first(lists_in(f"{before}\n```json\n[{written},\n]\n```\n{after}")) == [value]


@settings(max_examples=60)
@given(values=st.lists(OBJECTS, min_size=2, max_size=4), cut=st.data())
def test_any_whole_objects_before_a_cut_come_back(values: list[dict[str, Any]], cut: st.DataObject) -> None:
    """Guards against an object that is lost, changed or completed where the answer was cut off."""
    written = [json.dumps(value) for value in values]
    lines = "[" + ", ".join(written)
    end = cut.draw(st.integers(1 + len(written[0]), len(lines) - 1))
    whole = [value for at, value in enumerate(values) if end >= len("[" + ", ".join(written[: at + 1]))]
    found = first(lists_in(lines[:end]))
    found = [found] if isinstance(found, dict) else found
    assert found[: len(whole)] == whole  # after them come whole objects inside of the one that was cut


@given(st.text(st.sampled_from('[]{}",:1\\ \n`a'), max_size=60))
def test_noise_is_read_without_an_error(noise: str) -> None:
    """Guards against a row that takes its batch along; what is found is JSON."""
    assert all(isinstance(value, dict) for value in objects_in(noise))
    json.dumps(list(lists_in(noise)))


@pytest.mark.parametrize("loop", ["[", '{"a":', "[1,],", '[{"a": 1,},', "<think>", "```\n"])
def test_a_model_that_loops_is_read(loop: str) -> None:
    """Guards against minutes, and a stack that overflows, over thousands of brackets."""
    assert all(value in (CAT, {"a": 1}) for value in objects_in(json.dumps(CAT) + loop * 4000))

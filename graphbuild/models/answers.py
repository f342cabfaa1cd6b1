"""Reading the answers of language models: the words without the thinking, and the JSON in them, however wrapped."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

_THINKING = re.compile(r"[<\[\u25c1](/?)(?:think|thinking|thought|reasoning)[>\]\u25b7]", re.IGNORECASE)
_ANSWER = re.compile(r"</?answer>", re.IGNORECASE)
_FENCE = re.compile(r"```[^\n`]*\n((?:(?!```).)*)(?:```)?", re.DOTALL)
_OPENING = re.compile(r"[\[{]")
_DECODER = json.JSONDecoder(strict=False)  # line breaks inside of strings are read

_TRAILING = re.compile(r",\s*[\]}]")
_TRIES = 1000
"""Failed ones of one text, after which no more is read from it: an answer of 30,000 brackets would take minutes."""

Object = dict[str, Any]


def words_of(answer: str) -> str:
    """What an answer says: without thinking parts, and without a fence around the whole.

    A closing tag without an opening one ends a part that began with the answer (chat templates open it); a part that
    is not closed reaches to the end.
    """
    kept: list[str] = []
    thinking = False
    first, *rest = _THINKING.split(answer)
    kept.append(first)
    for closing, text in zip(rest[::2], rest[1::2], strict=True):
        if closing and not thinking:
            kept.clear()
        thinking = not closing
        if not thinking:
            kept.append(text)
    said = _ANSWER.sub("", "".join(kept)).strip()
    fenced = _FENCE.fullmatch(said)
    return fenced[1].strip() if fenced else said


def objects_in(answer: str) -> Iterator[Object]:
    """The whole JSON objects of an answer, the likeliest to be meant first: those in the last fence, then in the ones
    before, then anywhere, each from the last to the first. Trailing commas and line breaks in strings are read; of
    something cut off, or broken, its whole parts."""
    for part in _parts(answer):
        objects, _, _ = _values(part)
        yield from reversed(objects)


def lists_in(answer: str) -> Iterator[list[Any] | Object]:
    """What may be meant as a list of objects, the likeliest first, by the same rules: a list; else all whole objects
    in order, be they one a line or what is left of a list that was cut off; one object is given as itself."""
    for part in _parts(answer):
        objects, lists, remains = _values(part)
        yield from reversed(lists)
        if objects:
            yield objects[0] if len(objects) == 1 else objects
        yield from reversed(remains)


def _parts(answer: str) -> Iterator[str]:
    words = words_of(answer)
    yield from reversed(_FENCE.findall(words))
    yield words


def _values(text: str) -> tuple[list[Object], list[list[Any]], list[list[Any]]]:
    """Whole objects, whole lists, and lists that may be parts of something broken: those after the first breach."""
    objects, lists, remains = list[Object](), list[list[Any]](), list[list[Any]]()
    at = tries = 0
    broken = False
    while tries < _TRIES and (start := _OPENING.search(text, at)):
        value, text, at, tried = _decoded(text, start.start(), _TRIES - tries)
        tries += tried
        if value is None:
            broken = True
        elif isinstance(value, dict):
            objects.append(value)
        else:
            (remains if broken else lists).append(value)
    return objects, lists, remains


def _decoded(text: str, start: int, tries: int) -> tuple[Any, str, int, int]:
    """The value that begins at `start`, or None if it does not end or is no JSON; the text without its trailing commas;
    where to go on; and the failed tries that it took."""
    for tried in range(tries):
        try:
            value, end = _DECODER.raw_decode(text, start)
        except json.JSONDecodeError as error:
            comma = _trailing_comma(text, error.pos)
        except RecursionError:  # nothing but brackets, as models loop
            comma = None
        else:
            return value, text, end, tried
        if comma is None:
            return None, text, start + 1, tried + 1
        text = text[:comma] + text[comma + 1 :]
    return None, text, start + 1, tries


def _trailing_comma(text: str, at: int) -> int | None:
    """Where the comma is that the decoder stumbled over: it reports the comma, or the bracket after it."""
    comma = at if text[at : at + 1] == "," else len(text[:at].rstrip()) - 1
    return comma if comma >= 0 and _TRAILING.match(text, comma) else None

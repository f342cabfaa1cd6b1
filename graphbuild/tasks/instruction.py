"""Instructions: a layout sentence, a task sentence, and the content of the generated picture.

All randomness comes through `pick(label, n)`, an index below `n`; labels are `layout`, `task`, `content`,
`phrase:<column>`, `keep:task`, `keep:content` and `keep:all`. Every part has its own label, so that leaving one out
never changes the words of another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from graphbuild.config.strict_yaml import Share, Strict
from graphbuild.kinds.registry import Kind, kind_of
from graphbuild.tasks.paths.layout import Words

Pick = Callable[[str, int], int]
Layout = Literal["pipeline", "random"]

PIPELINE_LAYOUT = "A grid layout with {} rows and {} columns, displaying {} images arranged side by side."
"""Slots rows, columns, images. The sentence that diffusers' VisualClozeProcessor (Apache-2.0) always makes. It is here,
one row or many, because a prompt of layout `pipeline` has to equal the pipeline's in every byte."""

PIPELINE_CONTENT = "The last image of the last row depicts:"
"""What diffusers' VisualClozeGenerationPipeline (Apache-2.0) puts before a content prompt; here for the same reason."""

LAYOUTS = (
    "The canvas holds {images} in {rows} and {columns}.",
    "This is a table of pictures with {rows} and {columns}, {images} in all.",
    "We look at a matrix of {images}, {rows} high and {columns} wide.",
    "A contact sheet laid out as {rows} by {columns}, with room for {images}.",
    "The whole picture is divided evenly among {images}, in {rows} and {columns}.",
    "{images} in a regular arrangement: {rows}, {columns}.",
    "A single canvas composed of {images}, with {rows} and {columns}.",
)

TASKS = (
    "{row} applies one transformation that turns {conditions} into {target}.",
    "{row} shows how to get from {conditions} to {target}.",
    "Given {conditions}, {row} works out {target}.",
    "The rule of {row}: take {conditions}, then make {target}.",
    "The aim in {row} is to create {target} with the help of {conditions}.",
    "{row} derives {target} from {conditions}.",
    "With {conditions} as input, {row} arrives at {target}.",
    "{row} converts {conditions} to obtain {target}.",
)

FREE_TASKS = (
    "{row} is to be filled with {target}.",
    "The aim in {row} is to create {target}.",
    "{row} asks for {target}.",
    "{row} holds {target}, made from words alone.",
)
"""For a task whose every cell is a target."""

CONTENTS = (
    PIPELINE_CONTENT,
    "{place} shows:",
    "In {place} we see:",
    "Description of {place}:",
    "What {place} contains:",
    "{place} can be described as follows:",
)
"""Index 0 speaks of the last picture and is left out of the draw when the words describe another one."""

EDITS = (
    "The edit in {place}:",
    "{place} follows this request:",
    "To get {place}:",
    "Instruction for {place}:",
)
"""Before words that say what to do instead of what is to be seen."""

_CHANCE_STEPS = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Keep(Strict):
    """The chance that a part of the words is kept, each in [0, 1]; the defaults are those of training.

    `all` stands for the whole instruction, layout included.

    Raises:
        ValueError: a chance is outside [0, 1].
    """

    task: Share = 0.8
    content: Share = 0.8
    all: Share = 0.9


KEEP_ALL = Keep(task=1.0, content=1.0, all=1.0)
"""For evaluation: every part is kept."""


@dataclass(frozen=True, slots=True)
class Instruction:
    """The three parts; a missing one is empty.

    Attributes:
        content_first: whether the content comes before the others, for text encoders that cut what is long.
    """

    layout: str
    task: str
    content: str
    content_first: bool = False

    @property
    def text(self) -> str:
        """The prompt. A missing task leaves two spaces, as in diffusers' pipeline, whose prompt this equals."""
        if self.content_first:
            return " ".join(part for part in (self.content, self.task, self.layout) if part)
        return f"{self.layout} {self.task} {self.content}".strip()


def compose(
    kinds: Sequence[str | Kind],
    targets: Sequence[int],
    *,
    rows: int,
    pick: Pick,
    content: str | None = None,
    content_at: int | None = None,
    instructs: bool = False,
    notes: Sequence[str] = (),
    layout: Layout = "pipeline",
    keep: Keep = KEEP_ALL,
    words: Words = "full",
    shape: tuple[int, int] | None = None,
) -> Instruction:
    """Write the instruction of one grid.

    Args:
        kinds: the kind of every column, by name or declaration, in the order shown; text kinds have no column.
        targets: columns that the task makes, counted from 0. A hole drawn elsewhere does not change the words.
        rows: number of rows, the query included, at least 1.
        pick: `pick(label, n)` gives an index in `range(n)`.
        content: what the picture in column `content_at` of the last row shows; None or empty for none.
        content_at: by default the last column.
        instructs: `content` says what to do in order to get that picture.
        notes: one a column, put in brackets after its phrase (see `legend`); empty for none.
        layout: `pipeline` for the fixed sentences of diffusers' pipeline, `random` for ours.
        keep: the chances of keeping task, content and everything.
        words: `full` for all parts; `content` for the content alone, without a sentence around it, which in a task
            without content is what the target is.
        shape: lines and columns of a canvas that shows all of this; None for rows.

    Raises:
        ValueError: an unknown or text kind, no target, or a number outside its range.
    """
    declared = []
    for kind in kinds:
        declared.append(kind if isinstance(kind, Kind) else kind_of(kind))
    column = len(kinds) - 1 if content_at is None else content_at
    _check(declared, targets, rows, column, notes)
    if pick("keep:all", _CHANCE_STEPS) >= round(keep.all * _CHANCE_STEPS):
        return Instruction("", "", "")
    if words == "content":
        plain = content or _listed([_noted(declared, target, notes, pick) for target in targets])
        return of_parts("", plain, keep=keep, pick=pick)
    task = described = ""
    if pick("keep:task", _CHANCE_STEPS) < round(keep.task * _CHANCE_STEPS):
        task = _task(declared, targets, notes, rows, pick)
    if content and pick("keep:content", _CHANCE_STEPS) < round(keep.content * _CHANCE_STEPS):
        sentences = EDITS if instructs else CONTENTS if column == len(kinds) - 1 else CONTENTS[1:]
        described = f"{_content_prefix(sentences, column, len(kinds), layout, pick)} {content}"
    sentence = _layout(*(shape or (rows, len(kinds))), layout, pick)
    return Instruction(sentence, task, described, content_first=shape is not None)


def of_parts(task: str, content: str, *, keep: Keep, pick: Pick) -> Instruction:
    """An instruction of these two parts, each kept with its chance."""
    chances = {"all": keep.all, "task": keep.task, "content": keep.content}
    kept = {part: pick(f"keep:{part}", _CHANCE_STEPS) < round(chances[part] * _CHANCE_STEPS) for part in chances}
    return Instruction("", task * (kept["all"] and kept["task"]), content * (kept["all"] and kept["content"]))


def phrase_of(kind: Kind, column: int, pick: Pick) -> str:
    """The noun phrase that stands for the picture in a column."""
    return kind.phrases[pick(f"phrase:{column}", len(kind.phrases))]


def _noted(kinds: Sequence[Kind], column: int, notes: Sequence[str], pick: Pick) -> str:
    """The phrase of a column with its note."""
    note = f" ({notes[column]})" if notes and notes[column] else ""
    return phrase_of(kinds[column], column, pick) + note


def legend(labels: Sequence[tuple[str, str]], limit: int = 8) -> str:
    """The note of a label map or mask: (name, colour) pairs as "dog in red, ball in blue"; "" for none.

    Names beyond `limit` (at least 1) become "and 3 more", since text encoders cut long prompts.
    """
    shown = [f"{name} in {colour}" for name, colour in labels[:limit]]
    rest = len(labels) - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest else "")


def _check(kinds: Sequence[Kind], targets: Sequence[int], rows: int, content_at: int, notes: Sequence[str]) -> None:
    columns = range(len(kinds))
    for kind in kinds:
        if not kind.phrases:
            raise ValueError(f"kinds: {kind.name!r} has no phrases; allowed: kinds that are pictures")
    if not targets or len(set(targets)) != len(targets) or not set(columns).issuperset(targets):
        raise ValueError(f"targets: {list(targets)}; allowed: different columns 0..{len(kinds) - 1}, at least one")
    if content_at not in columns:
        raise ValueError(f"content_at: {content_at}; allowed: a column 0..{len(kinds) - 1}")
    if rows < 1:
        raise ValueError(f"rows: {rows}; allowed: 1 or more")
    if notes and len(notes) != len(kinds):
        raise ValueError(f"notes: {len(notes)} given; allowed: one for each of the {len(kinds)} columns")


def _layout(rows: int, columns: int, layout: Layout, pick: Pick) -> str:
    if layout == "pipeline":
        return PIPELINE_LAYOUT.format(rows, columns, rows * columns)
    sentence = LAYOUTS[pick("layout", len(LAYOUTS))]
    return sentence.format(
        rows=_count(rows, "row"), columns=_count(columns, "column"), images=_count(rows * columns, "image")
    )


def _task(kinds: Sequence[Kind], targets: Sequence[int], notes: Sequence[str], rows: int, pick: Pick) -> str:
    given: list[str] = []
    made: list[str] = []
    for column, kind in enumerate(kinds):  # what `_noted` gives, without two calls a column: every sample comes here
        note = f" ({notes[column]})" if notes and notes[column] else ""
        name = f"[IMAGE{column + 1}] {kind.phrases[pick(f'phrase:{column}', len(kind.phrases))]}{note}"
        (made if column in targets else given).append(name)
    sentences = TASKS if given else FREE_TASKS
    sentence = sentences[pick("task", len(sentences))].format(
        row="each row" if rows > 1 else "the row", conditions=_listed(given), target=_listed(made)
    )
    return sentence[0].upper() + sentence[1:]


def _content_prefix(sentences: Sequence[str], column: int, columns: int, layout: Layout, pick: Pick) -> str:
    sentence = sentences[0 if layout == "pipeline" else pick("content", len(sentences))]
    place = "the last image" if column == columns - 1 else f"[IMAGE{column + 1}]"
    text = sentence.format(place=f"{place} of the last row")
    return text[0].upper() + text[1:]


def _listed(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    *head, last = names or [""]
    return f"{', '.join(head)} and {last}" if head else last


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"

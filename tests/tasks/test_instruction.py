"""The words of a task: exact examples, and properties over random grids."""

from __future__ import annotations

import ast
import importlib.util
import pathlib
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphbuild.kinds.registry import KINDS
from graphbuild.tasks import instruction
from graphbuild.tasks.instruction import Instruction, Keep, Pick, compose, legend

PICTURES = sorted(kind.name for kind in KINDS.values() if kind.phrases)


def first(label: str, n: int) -> int:
    return 0


def last(label: str, n: int) -> int:
    return n - 1


def fixed(**indices: int) -> Pick:
    """A pick that returns what is given for a label, 0 elsewhere."""
    return lambda label, n: indices.get(label.replace(":", "_"), 0)


def test_the_pipelines_words() -> None:
    made = compose(["canny", "image"], [1], rows=2, pick=first, content="A corgi on a red sofa.")
    assert made.text == (
        "A grid layout with 2 rows and 2 columns, displaying 4 images arranged side by side."
        " Each row applies one transformation that turns [IMAGE1] a Canny edge map into [IMAGE2] a high-quality photo."
        " The last image of the last row depicts: A corgi on a red sofa."
    )


def test_our_words() -> None:
    made = compose(["style_reference", "reference", "depth", "style_content"], [3], rows=1, pick=first, layout="random")
    assert made.text == (
        "The canvas holds 4 images in 1 row and 4 columns."
        " The row applies one transformation that turns [IMAGE1] an example of the wanted style,"
        " [IMAGE2] a reference photo of the subject and [IMAGE3] a depth map"
        " into [IMAGE4] a stylised picture that keeps content and layout."
    )


@pytest.mark.parametrize("layout", ["pipeline", "random"])
def test_an_instruction_is_not_said_to_be_seen(layout: Any) -> None:
    """Guards against "the last image depicts: make it red"."""
    made = compose(
        ["image", "edit_local"], [1], rows=1, pick=first, content="Make it red.", instructs=True, layout=layout
    )
    assert made.content == "The edit in the last image of the last row: Make it red."
    for number in range(4):
        pick = fixed(content=number)
        said = compose(["edit_local", "image"], [0], rows=2, pick=pick, content="Go.", content_at=0, instructs=True,
                       layout="random").content  # fmt: skip
        assert "[IMAGE1] of the last row" in said and said.endswith(": Go.") and said[0] in "[TI"


def test_several_targets_and_content_in_the_middle() -> None:
    made = compose(["canny", "image", "depth"], [2, 1], rows=2, pick=fixed(task=2), content="A corgi.", content_at=1)
    assert made.task == (
        "Given [IMAGE1] a Canny edge map, each row works out [IMAGE2] a high-quality photo and [IMAGE3] a depth map."
    )
    assert made.content == "[IMAGE2] of the last row shows: A corgi."


def test_a_task_without_conditions() -> None:
    made = compose(["image", "depth"], [0, 1], rows=3, pick=first, layout="random")
    assert made.task == "Each row is to be filled with [IMAGE1] a high-quality photo and [IMAGE2] a depth map."


def test_one_picture_is_singular() -> None:
    made = [
        compose(["image"], [0], rows=1, pick=fixed(layout=index), layout="random").layout
        for index in range(len(instruction.LAYOUTS))
    ]
    assert not any(re.search(r"\b(rows|columns|images)\b", sentence) for sentence in made)


def test_notes_stand_in_brackets() -> None:
    note = legend([("dog", "red"), ("ball", "blue")])
    made = compose(["mask", "image"], [1], rows=1, pick=first, notes=[note, ""])
    assert "[IMAGE1] a mask of the named objects (dog in red, ball in blue) into [IMAGE2] a high" in made.task
    assert legend([]) == ""
    assert legend([("a", "red"), ("b", "blue"), ("c", "green")], limit=2) == "a in red, b in blue and 1 more"


def test_missing_parts_are_empty() -> None:
    made = compose(["canny", "image"], [1], rows=1, pick=last, content="A.", keep=Keep(task=0.5, content=0.5, all=1.0))
    assert (made.task, made.content, made.text) == ("", "", made.layout)
    assert compose(["canny", "image"], [1], rows=1, pick=last, keep=Keep(all=0.9)) == Instruction("", "", "")
    assert Instruction("L", "", "C").text == "L  C"


def test_what_is_left_out_changes_no_other_word() -> None:
    whole = compose(["hed", "image"], [1], rows=2, pick=first, content="A.", layout="random")
    without = compose(
        ["hed", "image"], [1], rows=2, pick=fixed(keep_task=1 << 19), content="A.", layout="random", keep=Keep(task=0.5)
    )
    assert without == Instruction(whole.layout, "", whole.content)


def test_there_is_enough_to_say() -> None:
    assert len(set(instruction.LAYOUTS)) >= 6 and len(set(instruction.TASKS)) >= 6
    assert len(set(instruction.CONTENTS)) >= 4 and len(set(instruction.FREE_TASKS)) >= 4
    assert instruction.CONTENTS[0] == "The last image of the last row depicts:"
    assert all(text.count("{conditions}") == text.count("{target}") == 1 for text in instruction.TASKS)
    assert all(set(re.findall(r"{(\w+)}", text)) == {"rows", "columns", "images"} for text in instruction.LAYOUTS)


def test_the_fixed_sentences_are_those_of_the_installed_diffusers() -> None:
    found = importlib.util.find_spec("diffusers")
    if found is None or not found.submodule_search_locations:
        pytest.skip("diffusers is not installed")
    folder = pathlib.Path(found.submodule_search_locations[0]) / "pipelines" / "visualcloze"
    tree = ast.parse((folder / "visualcloze_utils.py").read_text(encoding="utf-8"))
    producer = next(node for node in ast.walk(tree) if getattr(node, "name", "") == "get_layout_prompt")
    sentence = next(node for node in ast.walk(producer) if isinstance(node, ast.JoinedStr))
    parts = [part.value if isinstance(part, ast.Constant) else "{}" for part in sentence.values]
    assert "".join(map(str, parts)) == instruction.PIPELINE_LAYOUT
    pipeline = (folder / "pipeline_visualcloze_generation.py").read_text(encoding="utf-8")
    assert f'f"{instruction.PIPELINE_CONTENT} {{prompt}}"' in pipeline


@pytest.mark.parametrize(
    ("kinds", "targets", "rows", "message"),
    [
        (["canny", "image"], [], 1, r"targets: \[\]; allowed: different columns 0..1"),
        (["canny", "image"], [2], 1, r"targets: \[2\]; allowed: different columns 0..1"),
        (["canny", "image"], [1, 1], 1, r"targets: \[1, 1\]; allowed"),
        (["canny", "image"], [1], 0, r"rows: 0; allowed: 1 or more"),
        (["caption", "image"], [1], 1, r"'caption' has no phrases; allowed: kinds that are pictures"),
        (["cany", "image"], [1], 1, r"unknown kind 'cany'"),
    ],
)
def test_wrong_arguments_are_refused(kinds: list[str], targets: list[int], rows: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compose(kinds, targets, rows=rows, pick=first)


def test_other_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"content_at: 5; allowed: a column 0..1"):
        compose(["canny", "image"], [1], rows=1, pick=first, content_at=5)
    with pytest.raises(ValueError, match=r"notes: 1 given; allowed: one for each of the 2 columns"):
        compose(["canny", "image"], [1], rows=1, pick=first, notes=["x"])
    with pytest.raises(ValueError, match=r"task: 1.2; allowed: a number 0..1"):
        Keep(task=1.2)


@settings(max_examples=150, deadline=None)
@given(
    kinds=st.lists(st.sampled_from(PICTURES), min_size=1, max_size=6),
    rows=st.integers(1, 4),
    layout=st.sampled_from(["pipeline", "random"]),
    data=st.data(),
)
def test_columns_are_named_once_in_order_with_a_phrase_of_their_kind(
    kinds: list[str], rows: int, layout: instruction.Layout, data: st.DataObject
) -> None:
    columns = range(len(kinds))
    targets = data.draw(st.lists(st.sampled_from(columns), min_size=1, unique=True))
    draws = data.draw(st.randoms(use_true_random=False))
    made = compose(kinds, targets, rows=rows, pick=lambda _, n: draws.randrange(n), content="A corgi.", layout=layout)
    tags = [int(number) - 1 for number in re.findall(r"\[IMAGE(\d+)\]", made.task)]
    conditions = [column for column in columns if column not in targets]
    assert sorted(tags) == list(columns)
    assert [tag for tag in tags if tag in conditions] == conditions
    assert [tag for tag in tags if tag in targets] == sorted(targets)
    for column, kind in enumerate(kinds):
        assert any(f"[IMAGE{column + 1}] {phrase}" in made.task for phrase in KINDS[kind].phrases)
    numbers = [int(number) for number in re.findall(r"\d+", made.layout)]
    assert sorted(numbers) == sorted([rows, len(kinds), rows * len(kinds)])
    assert made.text == f"{made.layout} {made.task} {made.content}" and made.content.endswith(": A corgi.")
    assert not re.search(r"[{}]|  |\.\.|\b1 \w+s\b", made.text if layout == "random" else made.task)
    assert made.task[0].isupper() and made.task.endswith(".")

"""The shipped task lists against the published facts, and the strictness of the reader."""

from __future__ import annotations

import pathlib
import pickle
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from graphbuild.kinds.registry import INSTRUCTIONS, KINDS
from graphbuild.tasks.paths import Content, PathSet, TaskPath, load, role_kind, shipped
from tests.support.numerics import assert_close

REPOSITORY = pathlib.Path(__file__).parents[2]
NAMES = {
    "target": ["image"],
    "mlsd": ["lines"],
    "openpose": ["pose"],
    "uniformer": ["semantic"],
    "sam2_mask": ["segments"],
    "bbox": ["boxes"],
    "InstantStyle": ["style_reference", "style_content"],
    "ReduxStyle": ["style_reference", "style_semantic"],
    "DepthEdit": ["edit_global"],
    "FillEdit": ["edit_local"],
    "SRx2": ["sr_x2"],
    "SRx4": ["sr_x4"],
    "SPNoise": ["salt_pepper_noise"],
    "GaussianBlur": ["gaussian_blur"],
    "GaussianNoise": ["gaussian_noise"],
    "PoissonNoise": ["poisson_noise"],
    "LowLight": ["low_light"],
    "ColorDistortion": ["color_distortion"],
    "rotate90": ["rotate_90"],
    "rotate180": ["rotate_180"],
    "rotate270": ["rotate_270"],
}
"""Node names of the published list that are not ours in lower case."""


@pytest.fixture(scope="module")
def facts(spec_file: Callable[[str], pathlib.Path]) -> Any:
    file = spec_file("graph200k_tasks.yaml")
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def ours(nodes: list[str]) -> tuple[str, ...]:
    return tuple(cell for node in nodes for cell in NAMES.get(node, [node.lower()]))


def released(facts: Any) -> list[tuple[str, tuple[str, ...]]]:
    return [(task["task_type"], ours(path["path"])) for task in facts["train_tasks"] for path in task["paths"]]


def listed(paths: PathSet) -> list[tuple[str, tuple[str, ...]]]:
    return [(path.type, path.cells) for path in paths.paths]


def test_the_released_list_is_the_published_one_in_order(facts: Any) -> None:
    assert listed(load("graph200k_released")) == released(facts)


def test_the_papers_list_adds_exactly_the_box_paths(facts: Any) -> None:
    extra = [(path["task_type"], ours(path["path"])) for path in facts["legacy_extra_paths"]]
    assert Counter(listed(load("graph200k"))) == Counter(released(facts) + extra)
    assert [entry for entry in listed(load("graph200k")) if "boxes" not in entry[1]] == released(facts)


def test_released_probabilities_are_those_of_the_facts(facts: Any) -> None:
    published = [task["p_path"] for task in facts["train_tasks"] for _ in task["paths"]]
    np.testing.assert_allclose(load("graph200k_released").probabilities(), published, atol=5e-7)


def test_columns_are_those_of_the_facts(facts: Any) -> None:
    columns = [path["L"] for task in facts["train_tasks"] for path in task["paths"]]
    assert [len(path.cells) for path in load("graph200k_released").paths] == columns


@pytest.mark.parametrize(("name", "count"), [("graph200k", 134), ("graph200k_released", 129)])
def test_counts_types_and_probabilities(name: str, count: int) -> None:
    paths = load(name)
    sizes = Counter(path.type for path in paths.paths)
    assert (paths.name, len(paths.paths), len(sizes)) == (name, count, 12)
    expected = [1 / 12 / sizes[path.type] for path in paths.paths]
    uniform = np.full(count, 1 / count)
    assert_close(paths.probabilities(), expected, terms=count, dtype=torch.float64, mutant=uniform)
    assert paths.probabilities().dtype == np.float64 and paths.probabilities().sum() == pytest.approx(1)


@pytest.mark.parametrize("name", ["graph200k", "graph200k_released"])
def test_names_targets_and_content_follow_from_the_cells(name: str) -> None:
    for path in load(name).paths:
        *given, target = path.cells
        assert path.name == f"{'+'.join(given)}-to-{target}"
        assert path.targets == (len(given),)
        assert path.content == (Content(source="caption", of="image") if target == "image" else None)
        assert path.kinds == path.cells


BEYOND = """
    text_lines flow clothes lineart scribble inpaint_box inpaint_brush inpaint_random masked_box masked_brush
    masked_random tile
"""
"""Kinds that the paper does not have."""


def test_every_picture_kind_is_used_by_the_papers_list() -> None:
    used = {kind for path in load("graph200k").paths for kind in path.kinds}
    texts = {"caption", "edit_text", "background_text", *INSTRUCTIONS}
    # foreground and background are computed from it
    assert set(KINDS) - used - texts - {*BEYOND.split()} == {"foreground_mask"}


def test_shipped() -> None:
    edits = ("magicbrush", "multiview", "omniedit", "omniedit_unseen", "photodoodle")
    others = ("coco", "dreambench", "dreambooth", "graph200k", "graph200k_released", "hypersim", "id_sets", "nyu_depth")
    assert shipped() == tuple(sorted((*others, *edits, "viton_hd")))
    assert all(load(name).paths for name in shipped())
    with pytest.raises(ValueError, match=r"no task list 'graph2000' \(did you mean 'graph200k'\?\); shipped: coco, "):
        load("graph2000")


def test_a_path_set_can_be_sent_to_a_worker() -> None:
    paths = load("graph200k")
    assert pickle.loads(pickle.dumps(paths)) == paths


OWN = """
content: {from: caption, of: image}
types: {editing: 3, sketching: 1}
paths:
  - {name: sketch, type: sketching, cells: [canny, image], weight: 0.25}
  - {name: tidy, type: sketching, cells: [edit_local.canny, image], weight: 0.75, content: null}
  - name: two-edits
    type: editing
    cells: [edit_local:a, image, edit_local:b]
    target: [edit_local:b, edit_local:a]
    where: {category: [dog, cat], width: {min: 512}}
    content: {from: edit_text, of: edit_local:a}
  - {name: middle, type: editing, cells: [canny, image, depth], target: image, weight: 3}
"""


def write(folder: pathlib.Path, text: str) -> pathlib.Path:
    file = folder / "own.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def test_a_list_of_ones_own(tmp_path: pathlib.Path) -> None:
    paths = load(write(tmp_path, OWN))
    caption = Content(source="caption", of="image")
    sketch, tidy, edits, middle = paths.paths
    assert paths.name == "own" and paths.type_weights == {"editing": 3, "sketching": 1}
    assert (sketch.targets, sketch.content, tidy.content) == ((1,), caption, None)
    assert edits.targets == (0, 2) and edits.kinds == ("edit_local", "image", "edit_local")
    assert edits.where == {"category": ["dog", "cat"], "width": {"min": 512}}
    assert edits.content == Content(source="edit_text", of="edit_local:a")
    assert (middle.targets, middle.content) == ((1,), caption)
    assert paths.probabilities().tolist() == [0.0625, 0.1875, 0.1875, 0.5625]


def test_a_list_written_with_group_is_the_same_list(tmp_path: pathlib.Path) -> None:
    """Lists and checkpoints from before `family` had its name: the digest is compared when a training run resumes."""
    text = declared("own: {codec: png1, phrases: [a map], group: style}")
    old, new = load(write(tmp_path, text)), load(write(tmp_path, text.replace("group", "family")))
    assert old == new and old.paths[0].own[0].family == "style"
    assert old.digest == "8433f0a55b17"


def test_type_and_weight_have_defaults(tmp_path: pathlib.Path) -> None:
    paths = load(write(tmp_path, "paths: [{name: a, cells: [canny, image]}, {name: b, cells: [image], weight: 3}]"))
    assert [path.type for path in paths.paths] == ["custom", "custom"]
    assert paths.probabilities().tolist() == [0.25, 0.75]


def test_what_cannot_be_drawn_gets_nothing() -> None:
    def path(name: str, type_name: str, weight: float) -> TaskPath:
        return TaskPath(name=name, type=type_name, cells=("canny", "image"), targets=(1,), weight=weight)

    entries = (path("a", "on", 2), path("b", "on", 0), path("c", "off", 1), path("d", "empty", 0))
    paths = PathSet(name="x", paths=entries, type_weights={"off": 0})
    assert paths.probabilities().tolist() == [1, 0, 0, 0]
    with pytest.raises(ValueError, match="no path can be drawn"):
        PathSet(name="x", paths=entries[1:], type_weights={"off": 0})


def entry(body: str) -> str:
    return f"paths: [{{name: a, cells: [canny, image]{body}}}]"


def declared(text: str, kind: str = "own") -> str:
    return f"kinds:\n  {text}\npaths: [{{name: a, cells: [{kind}, image]}}]\n"


BAD = {
    "a list": ("[1]", r"the file: \[1\]; allowed: .*paths, types, content"),
    "no paths": ("types: {}", r"'paths' is missing; allowed: paths, types, content"),
    "paths no list": ("paths: 3", r"paths: 3; allowed: a list"),
    "no path at all": ("paths: []", r"no path can be drawn"),
    "unknown key": ("paths: []\nweights: {}", r"unknown key 'weights'; allowed: paths, types, content"),
    "unknown entry key": (entry(", wheight: 2"), r"path 'a': unknown key 'wheight'; allowed: name, type, cells"),
    "no name": ("paths: [{cells: [canny, image]}]", r"paths\[0\]: 'name' is missing; allowed: name, type"),
    "a number as name": ("paths: [{name: 7, cells: [canny]}]", r"path 7: name: 7; allowed: text"),
    "unknown kind": (
        "paths: [{name: a, cells: [cany, image]}]",
        r"path 'a': unknown kind 'cany' \(did you mean 'canny'\?\); known kinds: .*canny",
    ),
    "a text as cell": ("paths: [{name: a, cells: [caption, image]}]", r"path 'a': cell 'caption' is a text; allowed: "),
    "bad role": ("paths: [{name: a, cells: ['image:', canny]}]", r"path 'a': cell 'image:'; allowed: .*kind:name"),
    "cells no list": ("paths: [{name: a, cells: canny}]", r"path 'a': cells: 'canny'; allowed: a list"),
    "no cells": ("paths: [{name: a, cells: []}]", r"path 'a': cells: \[\]; allowed: a list"),
    "role twice": ("paths: [{name: a, cells: [image, image]}]", r"path 'a': cells: .* twice; .*'image:other'"),
    "target elsewhere": (entry(", target: depth"), r"path 'a': target: 'depth' is not a cell; allowed: canny, image"),
    "target twice": (entry(", target: [image, image]"), r"path 'a': targets: \(1, 1\); allowed: ascending"),
    "no target": (entry(", target: []"), r"path 'a': target: \[\]; allowed: a list"),
    "two computed": (
        "paths: [{name: a, cells: ['blur:a', 'blur:b', image]}]",
        r"path 'a': cells: 'blur' comes twice; it is computed",
    ),
    "negative weight": (entry(", weight: -1"), r"path 'a': weight: -1; allowed: a finite number >= 0"),
    "infinite weight": (entry(", weight: .inf"), r"path 'a': weight: inf; allowed: a finite number >= 0"),
    "word as weight": (entry(", weight: much"), r"path 'a': weight: 'much'; allowed: a finite number >= 0"),
    "truth as weight": (entry(", weight: true"), r"path 'a': weight: True; allowed: a finite number >= 0"),
    "where a list": (entry(", where: [1]"), r"path 'a': where: \[1\]; allowed: a mapping"),
    "content key": (entry(", content: {frm: caption}"), r"path 'a': content: unknown key 'frm'; allowed: from, of"),
    "content half": (entry(", content: {from: caption}"), r"path 'a': content: 'of' is missing; allowed: from, of"),
    "content a picture": (
        entry(", content: {from: image, of: image}"),
        r"path 'a': .*'image' is not a text; allowed: ",
    ),
    "content elsewhere": (entry(", content: {from: caption, of: hed}"), r"path 'a': .*'hed' is not a cell; allowed: "),
    "file content": (
        entry("") + "\ncontent: {from: caption, of: imag}",
        r"unknown kind 'imag' \(did you mean 'image'\?\); known kinds",
    ),
    "unused type": (entry("") + "\ntypes: {custom: 1, b: 2}", r"types: unknown key 'b'; allowed: custom"),
    "missing type": (entry("") + "\ntypes: {}", r"types: 'custom' is missing; allowed: custom"),
    "negative type": (entry("") + "\ntypes: {custom: -2}", r"types: custom: -2; allowed: a finite number >= 0"),
    "name twice": (
        "paths: [{name: a, cells: [image]}, {name: a, cells: [hed]}]",
        r"name: a used twice; allowed: a new",
    ),
    "key twice": (entry(", weight: 1, weight: 2"), r"line 1: key 'weight' used twice; allowed: once"),
    "own kind, known": (
        declared("canny: {codec: png1, phrases: [a]}", "canny"),
        r"kinds: 'canny' is in graphbuild.KINDS; allowed: other names",
    ),
    "own kind, family": (
        declared("own: {codec: png1, phrases: [a], family: pictures}"),
        r"kinds: own: family: 'pictures'; allowed: image, con",
    ),
    "own kind, codec": (
        declared("own: {codec: pgn, phrases: [a]}"),
        r"kinds: own: unknown codec 'pgn' \(did you mean 'png'\?\); known: boxes, jpeg",
    ),
    "own kind, no codec": (
        declared("own: {phrases: [a]}"),
        r"kinds: own: 'codec' is missing; allowed: codec, phrases, family",
    ),
    "own kind, no phrases": (
        declared("own: {codec: png1}"),
        r"kinds: own: phrases: \(\); allowed: noun phrases, at least one",
    ),
    "own kind, a phrase": (
        declared("own: {codec: png1, phrases: a map}"),
        r"kinds: own: phrases: 'a map'; allowed: a list",
    ),
    "own kind, a number": (
        declared("own: {codec: png1, phrases: [1]}"),
        r"kinds: own: phrases: \(1,\); allowed: noun phrases",
    ),
    "own kind, unknown key": (
        declared("own: {codec: png1, phrase: [a]}"),
        r"kinds: own: unknown key 'phrase'; allowed: codec, phrases",
    ),
    "condition of a kind, no such": (declared("cany: {where: {split: train}}"), r"unknown kind 'cany' \(did you mean"),
    "condition of a kind, unused": (
        "kinds: {depth: {where: {split: train}}}\n" + entry(""),
        r"kinds: depth: where: no path has this kind",
    ),
    "own kinds, no mapping": (declared("own"), r"kinds: 'own'; allowed: a mapping"),
    "no YAML": ("paths: [", r"line \d: did not find expected node content"),
    "object": ("paths: !!python/object:os.system {}", r"could not determine a constructor"),
}


@pytest.mark.parametrize(("text", "message"), BAD.values(), ids=BAD)
def test_a_bad_file_is_refused_with_file_path_value_and_choices(
    tmp_path: pathlib.Path, text: str, message: str
) -> None:
    file = write(tmp_path, text)
    with pytest.raises(ValueError, match=re.escape(str(file)) + ": " + "(?s:.*)" + message):
        load(file)


def test_records_check_themselves() -> None:
    with pytest.raises(ValueError, match=r"path 'a': targets: \(2,\); allowed: ascending positions 0..1"):
        TaskPath(name="a", cells=("canny", "image"), targets=(2,))
    assert role_kind("edit_local.canny:b") == "edit_local.canny"


def test_a_list_in_another_encoding_is_named(tmp_path: TaskPath) -> None:
    """Guards against an error that says which byte is wrong and not in which file."""
    file = tmp_path / "latin.yaml"
    file.write_bytes("paths: [{name: caf\xe9, cells: [image]}]".encode("latin-1"))
    with pytest.raises(ValueError, match=rf"^{re.escape(str(file))}: byte 18 is not UTF-8"):
        load(file)

"""Settings are read strictly: what is not understood is named with its value and what is allowed."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from graphbuild.annotators import BUILTIN, load_class, resolve
from graphbuild.annotators.canny import Canny
from graphbuild.annotators.grabcut import Grabcut
from graphbuild.annotators.vlm_caption import VlmCaption
from graphbuild.config.strict_yaml import allowed, parse_yaml
from graphbuild.errors import GraphError
from graphbuild.pipeline import load_pipeline
from graphbuild.tasks.config import CellConfig, HeldOut, SamplerConfig
from graphbuild.tasks.instruction import Keep
from graphbuild.tasks.paths import load
from graphbuild_train import TrainConfig, config_from
from graphbuild_train.recipes import read_recipe

# ---- files -----------------------------------------------------------------------------------------------------

BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n"
    for before, name in zip("abcdefghi", "bcdefghij", strict=True)
)

REFUSED = {
    "aliases that multiply": (BOMB.encode(), "more than 100,000 values"),
    "an alias of itself": (b"a: &a [*a]", "more than 50 levels"),
    "nested without end": (b"a: " + b"[" * 900, "line"),
    "wide and deep": (b"a: &a [" + b"x," * 50_000 + b"]\nb: [" + b"*a," * 50_000 + b"]", "more than 100,000 values"),
    "another encoding": ("source: sampl\xe9".encode("latin-1"), "byte 13 is not UTF-8; save the file as UTF-8"),
    "a key twice": (b"source: sample\nsource: folder", "line 1: key 'source' used twice"),
    "a file of data": (b"#" * (1 << 20) + b"\n", "larger than 1 MiB"),
    "an object": (b"source: !!python/object:os.system {}", "could not determine a constructor"),
    "a control character": (b"source: \x01", "not YAML"),
}
READERS: dict[str, Callable[[Path], object]] = {"pipeline": load_pipeline, "task list": load, "recipe": read_recipe}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("case", REFUSED)
def test_every_reader_refuses_a_bad_file_and_names_it(tmp_path: Path, reader: str, case: str) -> None:
    """Guards against a file that hangs a command for hours, and a reader that is less strict than the others."""
    data, words = REFUSED[case]
    file = tmp_path / "mine.yaml"
    file.write_bytes(data)
    with pytest.raises(GraphError) as caught:
        READERS[reader](file)
    assert str(caught.value).startswith(f"{file}: ") and words in str(caught.value), caught.value


def test_numbers_dates_and_anchors_mean_what_they_look_like() -> None:
    """Guards against `1e-4` as text, a version called 2026-11-01 as a date, and refusing honest anchors."""
    said = parse_yaml("rate: 1e-4\nday: 2026-11-01\nboth: &b {x: 1}\nagain: *b\nmarked: \xe9")
    assert said == {"rate": 1e-4, "day": "2026-11-01", "both": {"x": 1}, "again": {"x": 1}, "marked": "\xe9"}
    assert parse_yaml("\ufeffa: 1".encode()) == {"a": 1}, "a byte order mark is no key"


# ---- Python as YAML --------------------------------------------------------------------------------------------


def test_mappings_are_taken_as_the_docs_write_them() -> None:
    """Guards against an AttributeError long after the constructor."""
    config = SamplerConfig(keep={"task": 0.5}, held_out=[{"given": ["depth"], "holes": "image"}])  # type: ignore[arg-type]
    assert config.keep == Keep(task=0.5)
    assert config.held_out == (HeldOut(given=("depth",), holes=("image",)),)
    assert config == SamplerConfig(keep=Keep(task=0.5), held_out=config.held_out)
    assert config_from({"sampler": {"keep": {"task": 0.5}}}).sampler.keep == Keep(task=0.5)
    assert TrainConfig(lora={"rank": 8}).lora.rank == 8  # type: ignore[arg-type]
    assert Canny(resources={"batch_size": 4}) == resolve("canny", {"resources": {"batch_size": 4}})  # type: ignore[arg-type]


@pytest.mark.parametrize("config", [SamplerConfig(mask="paper", rows=(1.0,)), TrainConfig(), Canny(low=5)], ids=repr)
def test_checked_values_travel_and_change(config: Any) -> None:
    """Guards against a constructor check that breaks workers or `replace`."""
    assert pickle.loads(pickle.dumps(config)) == config == replace(config)


WRONG: dict[str, tuple[Callable[[], object], str]] = {
    "key in keep": (
        lambda: SamplerConfig(keep={"tsk": 1}),  # type: ignore[arg-type]
        r"keep: unknown key 'tsk'; allowed: task, content, all \(did you mean 'task'\?\)",
    ),
    "key in held_out": (
        lambda: SamplerConfig(held_out=[{"givn": ["depth"]}]),  # type: ignore[arg-type]
        r"held_out: unknown key 'givn'; allowed: given, holes \(did you mean 'given'\?\)",
    ),
    "key of a constructor": (
        lambda: CellConfig(cel_fit="aspect"),  # type: ignore[call-arg]
        r"CellConfig: unknown key 'cel_fit'; allowed: cell_fit, .* \(did you mean 'cell_fit'\?\)",
    ),
    "range": (lambda: Keep(task=1.5), r"^task: 1.5; allowed: a number 0..1$"),
    "nested range": (lambda: TrainConfig(lora={"rank": 0}), r"^lora: rank: 0; allowed: an integer >= 1$"),  # type: ignore[arg-type]
    "truth as number": (lambda: TrainConfig(workers=True), r"^workers: True; allowed: an integer >= 0$"),
    "text as number": (lambda: TrainConfig(steps="9"), r"^steps: '9'; allowed: an integer >= 1$"),  # type: ignore[arg-type]
    "half a step": (lambda: TrainConfig(steps=1.5), r"^steps: 1.5; allowed: an integer >= 1$"),  # type: ignore[arg-type]
    "a word": (
        lambda: TrainConfig(shift="static"),
        r"^shift: 'static'; allowed: dynamic, none or a number >= 1 or null$",
    ),  # type: ignore[arg-type]
    "not a mapping": (
        lambda: SamplerConfig(keep=3),  # type: ignore[arg-type]
        r"^keep: 3; allowed: a mapping with the keys task, content, all$",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_values_name_field_value_and_what_is_allowed(case: str) -> None:
    make, words = WRONG[case]
    with pytest.raises(ValueError, match=words):
        make()


# ---- parameters of annotators ----------------------------------------------------------------------------------

OUTSIDE: list[tuple[type, str, dict[str, Any], str]] = [
    (Grabcut, "grabcut", {"iterations": 0}, "iterations: 0; allowed: an integer 1..100"),
    (Grabcut, "grabcut", {"margin": 0.9}, "margin: 0.9; allowed: a number > 0 and < 0.5"),
    (Canny, "canny", {"low": -5}, "low: -5; allowed: a number 0..2040"),
    (Canny, "canny", {"high": 100_000}, "high: 100000; allowed: a number 0..2040"),
    (Canny, "canny", {"resources": {"batch_size": 0}}, "batch_size: 0; allowed: an integer >= 1"),
    (VlmCaption, "vlm_caption", {"temperature": -1.0}, "temperature: -1.0; allowed: a number 0..10"),
]


@pytest.mark.parametrize(("cls", "use", "config", "words"), OUTSIDE, ids=str)
def test_parameters_have_ranges(cls: type, use: str, config: dict[str, Any], words: str) -> None:
    """Guards against a run of days with a value that makes nothing; in Python as in YAML."""
    for make in (lambda: resolve(use, config), lambda: cls(**config)):
        with pytest.raises(ValueError, match=re.escape(words)):
            make()


@pytest.mark.parametrize("name", BUILTIN)
def test_every_number_has_a_range(name: str) -> None:
    """Guards against a parameter that was added without one."""
    cls = load_class(name)
    numbers = [f for f in fields(cls) if type(f.default) in (int, float)]
    assert [f.name for f in numbers if not set(allowed(cls, f.name)) & set("<>.")] == []

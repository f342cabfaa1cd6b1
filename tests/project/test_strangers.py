"""Strangers: a package outside the checkout brings one of everything, and the command line uses it by name."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

from graphbuild import cli
from graphbuild.store.graph import Graph
from graphbuild_train import cli as train_cli
from graphbuild_train.bases import tiny

MODULE = """
import zlib
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from safetensors.torch import save_file

import graphbuild as gb
from graphbuild.images.codecs import Codec, Encoded
from graphbuild.sources.base import Entry, Source, SourceItem
from graphbuild_train.bases.flux_fill import FluxFill
from graphbuild_train.objective import Flow, Objective


def packed(pixels):
    return Encoded(zlib.compress(pixels.tobytes()), "zlib", 32, 32)


packed_rgb = Codec(packed, lambda data, form: np.frombuffer(zlib.decompress(data), np.uint8).reshape(32, 32, 3))


@dataclass(frozen=True, kw_only=True)
class Stripes(Source):
    name: ClassVar[str] = "stripes"
    count: int = 12

    def entries(self):
        return [Entry(f"{number:02d}", "1") for number in range(self.count)]

    def read(self, keys):
        for key in keys:
            pixels = np.full((32, 32, 3), 20 * int(key), np.uint8)
            pixels[:: 2 + int(key) % 5] = 255 - 10 * int(key)
            yield SourceItem(key=key, uri=key, original=pixels.tobytes(), nodes={"image": pixels})


@dataclass(frozen=True, kw_only=True)
class Negative(gb.Condition):
    makes: ClassVar = (gb.Kind(name="negative", family="condition", codec="stranger_rgb", description="inverted"),)

    def annotate(self, batch, model):
        return [gb.Derived({"negative": 255 - request.inputs["image"].array()}) for request in batch]


def lines(tasks, out):
    file = out / "prompts.txt"
    file.write_text("\\n".join(task.prompt for task in tasks))
    yield file


class Base(FluxFill):
    checkpoint, licence = "MODEL", {"license": "mit"}

    def work(self, image, text):
        return None


holes_only = Objective(
    name="holes_only", like="visualcloze_fill", path=Flow(), noise="all", time="sample", loss="generated"
)


def halved(lora, file):
    save_file({name: tensor.contiguous() / 2 for name, tensor in lora.state.items()}, file)
    return file
"""
ENTRY_POINTS = """
[graphbuild.annotators]
stranger_negative = stranger_things:Negative
stranger_broken = stranger_gone:Negative
[graphbuild.sources]
stranger_stripes = stranger_things:Stripes
[graphbuild.codecs]
stranger_rgb = stranger_things:packed_rgb
[graphbuild.task_exporters]
stranger_lines = stranger_things:lines
[graphbuild.bases]
stranger_base = stranger_things:Base
[graphbuild.objectives]
stranger_holes = stranger_things:holes_only
[graphbuild.lora_exporters]
stranger_halves = stranger_things:halved
"""
TASKS = """
kinds: {negative: {codec: stranger_rgb, phrases: [a negative]}}
paths:
  - {name: negative-to-image, type: conditional generation, cells: [negative, image]}
"""
RECIPE = """
base: stranger_base
objective: stranger_holes
dtype: float32
paths: tasks.yaml
resolution: 32
steps: 1
batch: 1
lora: {layers: attn, rank: 2}
watch: {checkpoint: 0, validate: 0, sample: 0, sample_steps: 1}
"""
OPTIONS = ("--executor", "inline", "--out", "graph")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working folder; the package lies beside it, as pip would install it."""
    packages, info = tmp_path / "packages", tmp_path / "packages" / "stranger_things-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger-things\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    model = tiny.save(tmp_path / "model")
    (packages / "stranger_things.py").write_text(MODULE.replace("MODEL", str(model)))
    (work := tmp_path / "work").mkdir()
    (work / "tasks.yaml").write_text(TASKS)
    (work / "recipe.yaml").write_text(RECIPE)
    (work / "mine.yaml").write_text("source: stranger_stripes\nannotators: [stranger_negative]\n")
    monkeypatch.syspath_prepend(packages)
    monkeypatch.chdir(work)
    yield work
    sys.modules.pop("stranger_things", None)


def done(app: object, *arguments: str) -> str:
    result = CliRunner().invoke(app, arguments)  # type: ignore[arg-type]
    assert result.exit_code == 0, result.output
    return result.output


def test_a_package_of_a_stranger_is_used_by_name_from_picture_to_lora(folder: Path) -> None:
    """Guards against a table of ours that one has to be in: each of the seven is found by its entry point."""
    done(cli.app, "run", "--source", "stranger_stripes", "--annotators", "stranger_negative", *OPTIONS)
    assert "nothing to do" in done(cli.app, "run", "--pipeline", "mine.yaml", *OPTIONS)
    assert "no weights" in done(cli.app, "models", "--pipeline", "mine.yaml")
    rows = {row["annotator"]: row for row in json.loads(done(cli.app, "models", "--json"))}
    assert rows["stranger_negative"]["makes"] == ["negative"] and rows["canny"]["makes"] == ["canny"]
    assert "No module named 'stranger_gone'" in rows["stranger_broken"]["missing"][0]
    graph = Graph.open(folder / "graph")
    image, negative = (graph.read(0, kind) for kind in ("image", "negative"))
    assert (negative.format, negative.array().tolist()) == ("zlib", (255 - image.array()).tolist())
    done(cli.app, "verify", "graph", "--full")

    done(cli.app, "sample", "graph", "--paths", "tasks.yaml", "--count", "2", "--format", "stranger_lines")
    prompts = (folder / "grids" / "prompts.txt").read_text().splitlines()
    assert len(prompts) == 2 and all("a negative" in prompt for prompt in prompts)

    said = done(train_cli.app, "run", "recipe.yaml", "--graph", "graph", "--out", "lora")
    assert "memory and work unknown for base stranger_base" in said
    assert "license: mit" in (folder / "lora" / "README.md").read_text()
    done(train_cli.app, "export", "lora", "--format", "stranger_halves", "--out", "half.safetensors")
    whole, half = load_file("lora/pytorch_lora_weights.safetensors"), load_file("half.safetensors")
    assert all((tensor == 2 * half[name.removeprefix("transformer.")]).all() for name, tensor in whole.items())
    drawn = ("--split", "all", "--count", "1", "--out", "made")  # so few pictures leave none for validation
    made = done(train_cli.app, "sample", "lora", "--graph", "graph", *drawn).splitlines()[-1]
    assert Path(made).stat().st_size


def test_without_a_package_a_module_and_a_name_will_do(folder: Path) -> None:
    """Guards against entry points as the only door: a file on the path is enough."""
    done(cli.app, "run", "--source", "stranger_things:Stripes", "--annotators", "stranger_things:Negative", *OPTIONS)
    done(cli.app, "sample", "graph", "--paths", "tasks.yaml", "--count", "1", "--format", "stranger_things:lines")
    sets = ("--set", "base=stranger_things:Base", "--set", "objective=stranger_things:holes_only")
    said = done(train_cli.app, "run", "recipe.yaml", "--graph", "graph", "--dry-run", *sets)
    assert said.startswith("stranger_things:Base ") and "stranger_things:holes_only" in said

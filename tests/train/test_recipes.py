"""The recipes that ship: they load, what they name exists, and they say what the papers and the released code say."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from pathlib import Path

import pytest

from graphbuild.errors import GraphError
from graphbuild.tasks.masks import masks
from graphbuild.tasks.paths import load
from graphbuild_train.bases import BASES, base_class
from graphbuild_train.cards import CARDS, grid_of
from graphbuild_train.config import LoraConfig, TrainConfig
from graphbuild_train.forecast import GIB, MARGIN
from graphbuild_train.objective import objective_of
from graphbuild_train.preflight import pass_of, planned
from graphbuild_train.recipes import configured, read_recipe, recipe_file, recipe_names
from tests.support import meta_models

FOLDER = recipe_file("tiny").parent


def recipe(name: str) -> TrainConfig:
    return configured(read_recipe(recipe_file(name)), [])


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_loads_and_what_it_names_exists(name: str) -> None:
    """Guards against a recipe that is first read on somebody's GPU."""
    config = recipe(name)
    listed = load(config.paths)
    rated = {"quality_assessment.objectConsistency": {">=": 3}}
    assert config.paths not in ("graph200k", "graph200k_released") or listed.kind_where == {"reference": rated}
    layout = objective_of(config.objective).layout
    assert {path.layout for path in listed.arranged(layout).paths} == {layout}
    assert config.base in BASES and objective_of(config.objective, config.shift)
    assert all(masks(path, config.sampler) for path in listed.paths)
    text = recipe_file(name).read_text()
    assert text.startswith("# ")
    card = re.search(r"^# Smallest card: (\d+) GB", text, re.MULTILINE)
    assert name == "tiny" or (card is not None and int(card[1]) in CARDS)


def test_the_lists_beside_the_recipes_are_used() -> None:
    """Guards against a list that nobody draws from, and a recipe that takes a list for a recipe."""
    used = {Path(recipe(name).paths) for name in recipe_names()}
    assert set((FOLDER / "paths").glob("*.yaml")) <= used and len(recipe_names()) == 18


@pytest.mark.parametrize(("name", "model"), [("visualcloze_fill_24gb", "flux_fill"), ("flux2_klein_16gb", "klein")])
def test_a_recipe_that_is_named_after_a_card_fits_it(name: str, model: str, tmp_path: Path) -> None:
    """Guards against a recipe that runs out of the memory that its name promises: the forecast with two blocks of each
    kind, and what each further block adds."""
    config, card = recipe(name), int(name.rpartition("_")[2].removesuffix("gb"))
    config = replace(config, checkpointing=1)
    blocks = {"flux_fill": (19, 38), "klein": (5, 20)}[model]

    def taken(double: int, single: int) -> int:
        folder = getattr(meta_models, model)(tmp_path, num_layers=double, num_single_layers=single)
        base, _ = planned(config, str(folder))
        made = pass_of(config, base, *grid_of(config))
        assert made is not None
        return made.memory

    least = taken(1, 1)
    double, single = taken(2, 1) - least, taken(1, 2) - least
    whole = least + (blocks[0] - 1) * double + (blocks[1] - 1) * single
    assert whole * MARGIN <= CARDS[card][0] * GIB


def test_visualcloze_fill_is_the_default() -> None:
    """Guards against a recipe that drifts from the defaults it says it spells out."""
    config, default = recipe("visualcloze_fill"), TrainConfig()
    different = {f.name for f in fields(TrainConfig) if getattr(config, f.name) != getattr(default, f.name)}
    assert different == {"model", "shift"}
    assert base_class("flux_fill").sample_guidance == 30 != base_class("sdxl").sample_guidance
    assert config.model == base_class(default.base).checkpoint == "black-forest-labs/FLUX.1-Fill-dev"
    assert config.shift == objective_of("visualcloze_fill").shift


def test_the_released_recipe_says_what_the_released_code_does() -> None:
    """Guards against a comparison with VisualCloze that is none."""
    config = recipe("visualcloze_fill_released")
    assert (config.shift, config.guidance, config.paths) == ("none", 1.0, "graph200k_released")
    assert (config.sampler.mask, config.sampler.rows, config.sampler.layout) == ("code", (0.3, 0.4, 0.3), "random")
    assert (config.cells.cell_fit, config.cells.hole_fill) == ("stretch_square", "grey")
    assert config.lora == LoraConfig(layers="all", rank=256, bias=True) and config.lora.scale_alpha == 256
    assert (config.batch, config.steps, config.optimiser.clip, config.draws) == (16, 20_000, 2.0, "separate")
    assert (config.mix, config.micro_batch) == ("pass", 1)  # its loader draws each sample for itself
    assert (config.optimiser.learning_rate, config.optimiser.weight_decay, config.optimiser.ema) == (1e-4, 0, 0)


def test_the_paper_s_recipe_differs_where_the_paper_does() -> None:
    config = recipe("visualcloze_fill_paper")
    assert (config.shift, config.sampler.mask, config.paths, config.batch) == ("dynamic", "paper", "graph200k", 64)
    assert (config.mix, config.micro_batch) == ("pass", 1)


@pytest.mark.parametrize("name", [name for name in recipe_names() if name.startswith("onepic")])
def test_one_pic_generates_its_target_only(name: str) -> None:
    """Guards against a third of the steps spent on making conditions, and against a LoRA of another size."""
    config = recipe(name)
    for path in load(config.paths).paths:
        assert masks(path, config.sampler) == [(frozenset(path.targets), 1.0)]
    assert config.lora == LoraConfig(layers="attn", rank=32, alpha=4) and config.optimiser.learning_rate == 1e-3
    assert (config.objective, config.shift) == ("onepic", None)


def test_a_recipe_finds_the_list_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against recipes that work from one folder only."""
    (tmp_path / "mine.yaml").write_text("paths: list.yaml\nbase: sdxl\n")
    assert read_recipe(tmp_path / "mine.yaml")["paths"] == "list.yaml"
    (tmp_path / "list.yaml").write_text("paths: [{name: a, cells: [canny, image]}]")
    assert read_recipe(tmp_path / "mine.yaml")["paths"] == str(tmp_path / "list.yaml")
    monkeypatch.chdir(tmp_path)
    assert read_recipe(recipe_file("mine.yaml"))["paths"] == str(tmp_path / "list.yaml")


def test_overrides_go_into_groups_and_leave_the_recipe_alone() -> None:
    """Guards against a field that is dropped with its neighbours, or kept for the next run."""
    said = {"lora": {"rank": 8}}
    config = configured(said, ["lora.alpha=4", "optimiser.ema=0.9", "steps=7"])
    assert (config.lora.rank, config.lora.alpha, config.optimiser.ema, config.steps) == (8, 4, 0.9, 7)
    assert said == {"lora": {"rank": 8}}


@pytest.mark.parametrize(("text", "words"), [("a: [", "expected"), ("steps: 1\nsteps: 2", "key 'steps' used twice")])
def test_a_file_that_is_not_a_recipe_is_refused(tmp_path: Path, text: str, words: str) -> None:
    """Guards against the last of two settings, in silence."""
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(ValueError, match=words):
        read_recipe(tmp_path / "bad.yaml")


def test_an_unknown_name_lists_the_recipes() -> None:
    with pytest.raises(
        GraphError, match=r"no recipe 'x'; there are .*onepic_colorization, .*, tiny, .*visualcloze_fill"
    ):
        recipe_file("x")

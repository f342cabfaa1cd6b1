"""What is refused or said before a model is loaded, let alone trained for a night."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from graphbuild.errors import GraphError
from graphbuild_train import preflight
from graphbuild_train.config import config_from
from graphbuild_train.lora import count_lora
from graphbuild_train.plan import Plan
from graphbuild_train.preflight import pass_of
from tests.support.training import NEVER, Ground, said


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ({"resolution": 380}, "resolution: 380; allowed: multiples of 16"),
        ({"base": "sdxl", "objective": "onepic", "resolution": 392}, "resolution: 392; allowed: multiples of 16"),
        ({"cells": {"decode": "fast"}}, "cells.decode: 'fast'; allowed: exact, as its pipeline samples"),
        (
            {"base": "sdxl", "objective": "onepic", "cells": {"cell_fit": "aspect", "row_sizes": "own"}},
            "cells.row_sizes: 'own'; allowed for sdxl: shared",
        ),
        (
            {"base": "flex2", "cells": {"cell_fit": "aspect", "row_sizes": "own"}},
            "cells.row_sizes: 'own'; allowed for flex2: shared",
        ),
        ({"base": "flex2", "guidance": 3.5}, "guidance: 3.5; allowed for flex2: 1"),
        ({"base": "flux2_klein", "resolution": 48}, "resolution: 48; allowed for flux2_klein: 64 to 1024"),
    ],
)
def test_cells_that_a_base_cannot_train_or_sample_are_refused(recipe: dict[str, Any], words: str) -> None:
    """Guards against a refusal after 24 GB were loaded, or at the first sampling, 500 steps on."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the words are compared whole
        preflight.check(config_from(recipe))
    assert words in str(caught.value)


def test_a_run_checks_cells_before_it_loads(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a check that nobody calls."""
    monkeypatch.setattr("graphbuild_train.trainer.load_base", lambda *_, **__: pytest.fail("was loaded"))
    with pytest.raises(ValueError, match="resolution: 40"):
        ground.trainer("odd", resolution=40)


def test_a_forecast_needs_no_weights(ground: Ground, tmp_path: Path) -> None:
    """Guards against a dry run that loads 34 GB to say that they do not fit."""
    model = tmp_path / "configs"
    shutil.copytree(ground.model, model, ignore=shutil.ignore_patterns("*.safetensors"))
    plan = Plan(ground.config(model=str(model)), ground.graph, tmp_path / "out", console=Console(file=io.StringIO()))
    loaded = ground.trainer("loaded")
    ours, theirs = (pass_of(made.config, made.setup.base, 2, 2) for made in (plan, loaded))
    assert ours == theirs and ours is not None and ours.memory > 100_000
    assert plan.setup.lora == str(count_lora(loaded.base.bare))
    weights = [parameter.nbytes for name, parameter in loaded.base.bare.named_parameters() if "lora_" not in name]
    assert ours.base == sum(weights)
    with pytest.raises(ValueError, match="model: "):
        ground.trainer("weightless", model=str(model))
    assert not (tmp_path / "out").exists()


def test_processes_that_would_train_different_steps_are_refused(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against two machines with folders of their own, one of which resumes and one begins: they would train
    together and hang at the end."""
    monkeypatch.setattr("graphbuild_train.trainer.load_base", lambda *_, **__: pytest.fail("was loaded"))
    for other, words in (({"step": 500}, r"\(step 0 and 500\)"), ({"snapshot": "abc"}, r"\(snapshot \w+ and abc\)")):
        monkeypatch.setattr("graphbuild_train.plan.gather_object", lambda own, other=other: [*own, {**own[0], **other}])
        with pytest.raises(GraphError, match=f"processes 0 and 1 would begin differently {words}; allowed: one recipe"):
            ground.trainer("two")


def test_paths_without_examples_are_said(ground: Ground) -> None:
    """Guards against an in-context LoRA that has never seen an example: one photograph, or photographs of one scene."""
    options: dict[str, Any] = {"micro_batch": 4, "watch": NEVER}
    everything = ground.trainer("many", **options)
    everything.journal.say(preflight.lines(everything.setup))
    assert "no examples" not in said(everything) and everything.sampler.most_rows()["canny-to-image"] == 2
    (first,) = everything.graphs[0].items()["item_id"].slice(0, 1).to_pylist()
    one = ground.trainer("one", sampler={"split": None, "where": {"item_id": first}, "rows": [0.5, 0.5]}, **options)
    one.journal.say(preflight.lines(one.setup))
    words = " ".join(said(one).split())
    assert "no examples: 3 of 3 paths (canny-to-image, image-to-canny, noise-to-image) are served by one item" in words
    assert "largest pass, 4 x 2 cells" in words

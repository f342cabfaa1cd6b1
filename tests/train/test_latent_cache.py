"""The cache of VAE posteriors: nothing but time changes, and what it holds is not decoded."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from graphbuild.errors import GraphError
from graphbuild_train import preflight
from graphbuild_train.bases.base import RECENT
from graphbuild_train.disk_cache import DiskCache, fingerprint
from graphbuild_train.latent_cache import LatentCache
from tests.support.tiny_models import save_flex2, save_flux_dev
from tests.support.tiny_models_other import save_flux2_klein, save_sdxl
from tests.support.training import Ground, recorded, state

ROUNDS: dict[str, Any] = {"walks": 8, "steps": 4, "optimiser": {"learning_rate": 1e-3, "ema": 0.5}}
"""Two rounds over the same eight grid tasks."""
OTHERS: dict[str, Any] = {
    "flux_dev": (save_flux_dev, "visualcloze_dev"),
    "sdxl": (save_sdxl, "onepic"),
    "flux2_klein": (save_flux2_klein, "flux2_klein"),
    "flex2": (save_flex2, "visualcloze_fill"),
}


# ---- a run -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("workers", "cells"), [(0, {}), (1, {}), (0, {"cell_fit": "aspect", "row_sizes": "own", "hole_fill": "grey"})]
)
def test_rounds_with_the_cache_equal_rounds_without(
    workers: int, cells: dict[str, Any], ground: Ground, decodes: list[str]
) -> None:
    """Guards against a draw that is kept instead of the posterior, and against pictures taken for one another."""
    name = f"{workers}-{len(cells)}"
    options = {**ROUNDS, "workers": workers, "cells": cells, "micro_batch": 1 if cells else 2}
    without = ground.trained(f"without-{name}", **options)
    cached = ground.trained(f"cached-{name}", **options, cache_gb=1.0)
    assert recorded(without.out, "loss") == recorded(cached.out, "loss")
    assert all(torch.equal(tensor, state(cached.out)[name]) for name, tensor in state(without.out).items())
    hits, misses = cached.base.cache.hits, cached.base.cache.misses
    assert hits >= misses > 0 == without.base.cache.hits  # the first of two rounds fills it


def test_what_is_cached_is_not_decoded(ground: Ground, decodes: list[str]) -> None:
    """Guards against a cache that is asked only after the work is done, which is most of a loader's time."""
    trainer = ground.trainer("decodes", **ROUNDS, cache_gb=1.0)
    grids = trainer._grids(0)
    first = [trainer.base.encode(*next(grids)).z for _ in range(4)]
    once = len(decodes)
    assert once > 0
    second = [next(grids) for _ in range(4)]
    assert len(decodes) == once and [len(grid.decoded) for grid, _ in second] == [0] * 4
    again = [trainer.base.encode(grid, trainer.config.seed).z for grid, _ in second]
    assert all(map(torch.equal, first, again)) and len(decodes) == once
    grids.close()


def test_a_batch_of_which_a_part_is_cached(ground: Ground) -> None:
    """Guards against latents of another sample of the batch, and bits that depend on how many are encoded at once."""
    trainer = ground.trainer("part", **ROUNDS, mix="step", cache_gb=1.0)
    whole = trainer.base.encode(*next(trainer._grids(0)))
    one = ground.trainer("one", **{**ROUNDS, "micro_batch": 1}, mix="step", cache_gb=1.0)
    one.base.encode(*next(one._grids(0)))
    trainer.base.cache = one.base.cache
    grid, seed = next(trainer._grids(0))
    assert grid.decoded.tolist() == [1]
    part = trainer.base.encode(grid, seed)
    assert torch.equal(part.z, whole.z) and torch.equal(part.extra, whole.extra)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", OTHERS)
def test_every_base_names_what_it_encodes(name: str, ground: Ground, tmp_path: Path, decodes: list[str]) -> None:
    """Guards against a base whose keys are of other pictures than it encodes, or never come again."""
    save, objective = OTHERS[name]
    model = str(save(tmp_path / "model"))
    options = {**ROUNDS, "base": name, "model": model, "objective": objective, "resolution": 64}
    trainer = ground.trainer(name, **options, cache_gb=1.0)
    first = [trainer.base.encode(*next(grids)) for grids in [trainer._grids(0)] for _ in range(4)]
    once = len(decodes)
    second = [trainer.base.encode(*next(grids)) for grids in [trainer._grids(0)] for _ in range(4)]
    assert len(decodes) == once > 0 and trainer.base.cache.hits > 0
    assert all(torch.equal(one.z, other.z) for one, other in zip(first, second, strict=True))
    assert all(
        torch.equal(one.ids, other.ids) and one.size == other.size for one, other in zip(first, second, strict=True)
    )


def test_what_it_will_need_is_said_before_and_never_exceeded(ground: Ground) -> None:
    """Guards against a run that dies of memory after hours."""
    trainer = ground.trainer("room", walks=8, cache_gb=1.0)
    predicted = preflight.cache_bytes(trainer.setup)
    trainer.fit()
    used = 1e9 - trainer.base.cache.room
    assert predicted / 2 < used <= predicted


def test_what_is_on_disk_is_not_decoded_nor_said_again(ground: Ground, decodes: list[str], tmp_path: Path) -> None:
    """Guards against another run that begins anew, caches that change bits, and those of another VAE taken for ours."""
    plain = ground.trained("undisked", **ROUNDS)
    kept = {**ROUNDS, "cache_disk_gb": 1.0, "text_cache_gb": 1.0, "cache_folder": str(tmp_path / "cache")}
    first = ground.trained("disked", **kept, text="ahead")
    assert first.base.said is not None and first.base.cache.misses > 0
    files = {file.parent.parent.name[:5] for file in tmp_path.rglob("*.safetensors")}
    assert files == {"laten", "text-"}
    decodes.clear()
    asked: list[str] = []
    again = ground.trainer("disked-again", **kept)
    encode = again.base.words
    again.base.words = lambda prompt: asked.append(prompt) or encode(prompt)  # type: ignore[method-assign,func-returns-value]
    again.fit()
    assert (decodes, asked, again.base.cache.misses) == ([], [], 0)
    for out in (first.out, again.out):
        assert recorded(out, "loss") == recorded(plain.out, "loss")
        assert all(torch.equal(tensor, state(out)[name]) for name, tensor in state(plain.out).items())
    vae = again.base.pipe.vae
    assert fingerprint(vae) == fingerprint(first.base.pipe.vae)
    next(vae.parameters()).data[0] += 1
    assert fingerprint(vae) != fingerprint(first.base.pipe.vae)


def test_words_that_recur_are_encoded_once_and_forgotten_in_time(ground: Ground, monkeypatch: Any) -> None:
    """Guards against a text encoder that runs for each task whose words were left out, words that are taken for others,
    and a memory that grows with the captions of a graph."""
    base = ground.trainer("words").base
    wanted = [{name: tensor.clone() for name, tensor in base.words(prompt).items()} for prompt in ("", "a", "")]
    asked: list[str] = []
    encode = base.words
    monkeypatch.setattr(base, "words", lambda prompt: asked.append(prompt) or encode(prompt))
    for _ in range(2):
        found = base.text(["", "a", ""])
        for name, tensor in found.items():
            assert torch.equal(tensor, torch.cat([own[name] for own in wanted]))
            tensor.zero_()  # what a caller does with it is its own matter
    assert asked == ["", "a"]
    base.text([str(number) for number in range(RECENT)])
    base.text([""])
    assert asked[-1] == "" and len(asked) == RECENT + 3


def test_instructions_that_do_not_fit_are_said_before_the_first_step(ground: Ground) -> None:
    """Guards against a run that asks its text encoders for hours after it was told not to."""
    with pytest.raises(GraphError, match=r"text_cache_gb: 4e-05; full after the instructions of \d+ grid tasks"):
        ground.trained("small", **ROUNDS, text="ahead", text_cache_gb=4e-5)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    """Guards against latents of a file that was cut short, and an error that names no file."""
    cache = DiskCache.within(tmp_path / "vae", 1.0)
    cache.put("a", {"posterior": torch.ones(4)})
    (file,) = tmp_path.rglob("*.safetensors")
    assert "a" in cache and cache.get("b") is None
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(ValueError, match=f"{file.name}: damaged"):
        cache.get("a")


def test_the_disk_is_not_filled_beyond_what_was_allowed(tmp_path: Path) -> None:
    """Guards against a cache that counts only what it wrote itself."""
    DiskCache.within(tmp_path / "vae", 1.0).put("a", {"posterior": torch.ones(100)})
    cache = DiskCache.within(tmp_path / "vae", 800 / 1e9)
    cache.put("b", {"posterior": torch.ones(100)})
    assert "b" not in cache and cache.held


def test_given_rows_are_drawn_once_or_twice(ground: Ground) -> None:
    """Guards against a switch that changes what is shown, or the truth, along with what is noised."""
    shared, separate = (
        ground.trainer(f"draws-{draws}", **{**ROUNDS, "draws": draws, "sampler": {"rows": [0, 1]}})
        for draws in ("shared", "separate")
    )
    one, two = (trainer.base.encode(*next(trainer._grids(0))) for trainer in (shared, separate))
    given = one.view == 0
    assert torch.equal(one.extra, two.extra) and torch.equal(one.z[~given], two.z[~given])  # type: ignore[arg-type]
    shown = one.extra[..., :64]  # type: ignore[index]
    assert torch.equal(one.z[given], shown[given]) and not torch.equal(two.z[given], shown[given])
    assert (two.z[given] - one.z[given]).std() < 10 * one.z[given].std()


# ---- the cache ---------------------------------------------------------------------------------------------------


def test_it_stops_at_its_size() -> None:
    """Guards against a cache that grows until the machine swaps, and one that drops what a loader relies on."""
    cache = LatentCache(2 * 800 / 1e9)  # two of the three
    for _ in range(2):
        for number in range(3):
            assert cache.get(str(number), lambda number=number: torch.full((100,), number)).unique() == number
    assert (cache.hits, cache.misses, cache.room) == (2, 4, 0)
    assert "0" in cache and "1" in cache and "2" not in cache


def test_it_keeps_its_own_copy_and_nothing_without_a_name() -> None:
    """Guards against posteriors that change with the batch they came in, and pictures at inference that are kept."""
    cache = LatentCache(1.0)
    cache.get("a", lambda: torch.ones(4)).zero_()
    assert cache.get("a", lambda: torch.zeros(4)).unique() == 1
    cache.get("", lambda: torch.ones(4))
    assert cache.get("", lambda: torch.zeros(4)).unique() == 0


def test_a_worker_of_its_own_memory_gets_the_names_only() -> None:
    """Guards against gigabytes of latents sent to every spawned worker."""
    cache = LatentCache(1.0)
    cache.get("a", lambda: torch.zeros(1000, 1000))
    sent = pickle.dumps(cache)
    assert len(sent) < 1000 and "a" in pickle.loads(sent) and "b" not in pickle.loads(sent)

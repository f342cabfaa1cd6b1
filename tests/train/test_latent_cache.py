"""The cache of VAE posteriors: nothing but time changes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor

from graphbuild_train import preflight
from graphbuild_train.latent_cache import PosteriorCache
from tests.support.training import Ground, grounded, recorded, state


@pytest.fixture(scope="module")
def ground(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    with grounded(tmp_path_factory.mktemp("cache"), photos) as made:
        yield made


class Vae:
    """Counts the pictures it sees; a posterior says which one it is."""

    seen = 0

    def encode(self, pixels: Tensor) -> Any:
        self.seen += len(pixels)
        mean = pixels.mean(dim=(1, 2, 3), keepdim=True).expand(-1, 4, *(side // 8 for side in pixels.shape[2:]))
        return SimpleNamespace(latent_dist=DiagonalGaussianDistribution(torch.cat([mean, torch.zeros_like(mean)], 1)))


def test_rounds_with_the_cache_equal_rounds_without(ground: Ground) -> None:
    """Guards against a draw that is kept instead of the posterior, and against pictures taken for one another."""
    options = {"walks": 8, "steps": 6, "optimiser": {"learning_rate": 1e-3, "ema": 0.5}}
    without = ground.trained("without", **options)
    cached = ground.trained("cached", **options, cache_gb=1.0)
    assert recorded(without.out, "loss") == recorded(cached.out, "loss")
    assert all(torch.equal(tensor, state(cached.out)[name]) for name, tensor in state(without.out).items())
    assert cached.cache is not None and without.cache is None
    assert cached.cache.hits >= 2 * cached.cache.misses > 0  # the first of three rounds fills it


def test_what_it_will_need_is_said_before_and_never_exceeded(ground: Ground) -> None:
    """Guards against a run that dies of memory after hours."""
    trainer = ground.trainer("room", walks=8, cache_gb=1.0)
    predicted = preflight.cache_bytes(trainer.setup)
    trainer.fit()
    assert trainer.cache is not None
    used = 1e9 - trainer.cache.room
    assert predicted / 2 < used <= predicted


def test_it_stops_at_its_size() -> None:
    """Guards against a cache that grows until the machine swaps."""
    vae = Vae()
    cache = PosteriorCache(vae, 2 * 8 * 64 * 4 / 1e9)  # two posteriors of 8 x 8 x 8
    pictures = torch.rand(3, 1, 3, 64, 64)
    for _ in range(2):
        for picture in pictures:
            vae.encode(picture)
    assert (vae.seen, cache.hits, cache.misses, cache.room) == (4, 2, 4, 0)


def test_equal_bytes_of_another_shape_are_another_picture() -> None:
    """Guards against a wide black picture that gets the latents of a tall one."""
    vae = Vae()
    PosteriorCache(vae, 1.0)
    shapes = [vae.encode(torch.zeros(1, 3, *size)).latent_dist.mean.shape[2:] for size in ((16, 32), (32, 16))]
    assert shapes == [(2, 4), (4, 2)] and vae.seen == 2


def test_it_keeps_its_own_copy() -> None:
    """Guards against posteriors that change with the batch they came in."""
    vae = Vae()
    PosteriorCache(vae, 1.0)
    first = vae.encode(torch.ones(1, 3, 16, 16)).latent_dist
    first.parameters.zero_()
    assert vae.encode(torch.ones(1, 3, 16, 16)).latent_dist.mean.unique() == 1

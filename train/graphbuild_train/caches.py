"""The caches of a run: VAE posteriors in memory and on disk, and embeddings of instructions on disk."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from graphbuild.errors import GraphError
from graphbuild_train.bases.base import Base
from graphbuild_train.config import TrainConfig
from graphbuild_train.disk_cache import DiskCache, fingerprint
from graphbuild_train.latent_cache import LatentCache


def give_caches(base: Base, config: TrainConfig, out: Path, processes: int) -> None:
    """Give a base the caches that a recipe asks for, and its way to draw posteriors.

    Args:
        out: the run's folder.
        processes: that share the disk.
    """
    folder, disk, parts = Path(config.cache_folder or out / "cache"), None, base.pipe.components
    on = base.device.type  # whose kernels give bits of their own
    if config.cache_disk_gb:
        named = folder / f"latents-{on}-{fingerprint(base.pipe.vae)}"
        disk = DiskCache.within(named, config.cache_disk_gb, processes)
    if config.text_cache_gb:
        encoders = [part for name, part in parts.items() if name.startswith("text_encoder") and part is not None]
        named = folder / f"text-{on}-{fingerprint(*encoders)}"
        base.said = DiskCache.within(named, config.text_cache_gb, processes)
    base.cache, base.draws = LatentCache(config.cache_gb, disk), config.draws


def say_ahead(base: Base, prompts: Iterable[str], config: TrainConfig) -> None:
    """Encode instructions into the cache.

    Raises:
        GraphError: they do not fit it.
    """
    said = base.said
    assert said is not None
    for count, prompt in enumerate(prompts):
        if prompt not in said:
            base.text([prompt])
        if said.held:
            raise GraphError(
                f"text_cache_gb: {config.text_cache_gb}; full after the instructions of {count} grid tasks of this "
                "process; allowed: more, or text: cpu, which encodes on the way"
            )

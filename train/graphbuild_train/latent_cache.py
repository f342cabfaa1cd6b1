"""What a VAE said of pictures it has seen: its posterior, not a draw from it, so that every round still draws anew."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import xxhash
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor


class PosteriorCache:
    """Stands in for the `encode` of one VAE and asks it only for pictures that it was not asked for before.

    A picture is known by a hash of the pixels that the VAE would see, so whatever made them is part of the key: items,
    variants, degradations, size, holes and how they are filled. So is how many are seen at once, which can change a
    last bit: with the cache and without, losses are equal in every bit. Mean and log-variance are kept as they came, in
    main memory; when `gigabytes` are used, new ones are not kept.
    """

    def __init__(self, vae: Any, gigabytes: float) -> None:
        self.room = int(gigabytes * 1e9)
        self.hits = self.misses = 0
        self._known: dict[bytes, Tensor] = {}
        self._encode = vae.encode
        vae.encode = self.encode

    def encode(self, pixels: Tensor) -> Any:
        """B x 3 x H x W pixels to an object with `latent_dist`, as diffusers' VAEs return it."""
        keys = [_key(picture, len(pixels)) for picture in pixels]
        missing = sum(key not in self._known for key in keys)
        self.hits, self.misses = self.hits + len(keys) - missing, self.misses + missing
        if missing:
            parameters = self._encode(pixels).latent_dist.parameters
            for key, own in zip(keys, parameters, strict=True):
                self._keep(key, own)
        else:
            parameters = torch.stack([self._known[key] for key in keys]).to(pixels.device)
        return SimpleNamespace(latent_dist=DiagonalGaussianDistribution(parameters))

    def _keep(self, key: bytes, parameters: Tensor) -> None:
        if key not in self._known and parameters.nbytes <= self.room:
            self.room -= parameters.nbytes
            self._known[key] = parameters.to("cpu", copy=True)


def _key(picture: Tensor, together: int) -> bytes:
    shape = f"{together}|{tuple(picture.shape)}|{picture.dtype}".encode()
    pixels: Any = picture.contiguous().view(torch.uint8).cpu().numpy()
    return xxhash.xxh3_128(shape + xxhash.xxh3_128(pixels).digest()).digest()

"""Tensors on disk by key: what is expensive to compute, and the same in every run on the same networks."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


@dataclass
class DiskCache:
    """A folder with a safetensors file for each key. Nothing is ever removed: when `room` is used, new ones are not
    kept. Files appear whole, so that processes and runs can share a folder.

    Args:
        folder: of one network, by `fingerprint`; made when the first file is written.
        room: bytes that this process may still add.
    """

    folder: Path
    room: int = 0
    held: bool = field(default=False, init=False)
    """Whether something was left out because the room was used."""

    @classmethod
    def within(cls, folder: Path, gigabytes: float, processes: int = 1) -> DiskCache:
        """A cache that may use so many GB of the disk, shared with other processes; what is there counts."""
        used = sum(file.stat().st_size for file in folder.glob("*/*.safetensors"))
        return cls(folder, max(0, int(gigabytes * 1e9) - used) // processes)

    def __contains__(self, key: str) -> bool:
        return self._file(key).exists()

    def get(self, key: str) -> dict[str, Tensor] | None:
        """The tensors of a key, on the CPU; None if they are not there.

        Raises:
            ValueError: the file is damaged.
        """
        file = self._file(key)
        try:
            return load_file(file)
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{file}: damaged ({error}); remove it, it is made again") from error

    def put(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep tensors, if there is room."""
        size = sum(tensor.nbytes for tensor in tensors.values())
        if size > self.room:
            self.held = True
            return
        self.room -= size
        file = self._file(key)
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f".{file.stem}.{os.getpid()}")
        try:
            save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, partial)
            partial.replace(file)
        finally:
            partial.unlink(missing_ok=True)

    def _file(self, key: str) -> Path:
        name = xxhash.xxh3_128_hexdigest(key.encode())
        return self.folder / name[:2] / f"{name}.safetensors"


def fingerprint(*networks: nn.Module) -> str:
    """16 hex digits that differ where networks give other results on the same device: from their classes, the names,
    types and shapes of their weights, and the first values of each."""
    hashed = xxhash.xxh3_64()
    for network in networks:
        hashed.update(type(network).__name__.encode())
        for name, weight in network.named_parameters():
            value: Any = getattr(weight, "qdata", weight.detach())  # torchao's are no plain tensors
            some = value.flatten()[:64].cpu().contiguous().view(torch.uint8)
            hashed.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
            hashed.update(some.numpy().tobytes())
    return hashed.hexdigest()

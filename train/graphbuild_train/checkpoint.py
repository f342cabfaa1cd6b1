"""Checkpoints: all that a run needs to resume exactly, in folders that appear whole or not at all.

    OUT/checkpoints/step-00000500/pytorch_lora_weights.safetensors   for users; the moving average if there is one
    OUT/checkpoints/step-00000500/   lora (beside an average), optimiser, rng .safetensors, state.json
    OUT/lock                         held by the run that writes there

Draws are counted per walk, so a data position is one integer and a checkpoint fits any number of processes.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import socket
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import xxhash
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from safetensors.torch import load_file, save_file
from torch import Tensor

import graphbuild
from graphbuild.errors import GraphError

FOLDER = "checkpoints"
_STEP = re.compile(r"step-(\d{8,})")
_PARTS = ("lora", "ema", "optimiser", "rng", "header")
_FINISHED = Path(LORA_WEIGHT_NAME_SAFE).stem
_PACKAGES = ("torch", "diffusers", "peft", "transformers")
_held: set[int] = set()


class DamagedCheckpoint(Exception):
    """Files of a checkpoint are missing or altered."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """State of a run between two steps. Tensors are read back on the CPU."""

    step: int
    """Optimiser steps done."""
    next: int
    """Walk index of the first grid task that was not trained on, over all processes."""
    seed: int
    config: Mapping[str, Any]
    """The run's config, as JSON values."""
    snapshot: str
    """Digest of the snapshot that is trained on."""
    lora: Mapping[str, Tensor]
    """Parameters of the LoRA, from `lora_state`."""
    ema: Mapping[str, Tensor] = field(default_factory=dict)
    """Moving average of the LoRA; empty without one."""
    optimiser: Mapping[str, Any] = field(default_factory=dict)
    """State of the optimiser, from its `state_dict()`."""
    rng: Mapping[str, Tensor] = field(default_factory=dict)
    """Global generators, from `rng_state`."""
    part: str = "transformer"
    """The pipeline's module that the LoRA belongs to."""
    header: Mapping[str, str] = field(default_factory=dict)
    """Header of the LoRA's file in diffusers' form, from `header_of_run`; it is not read back."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Versions of the packages that wrote it; filled in by `save`."""


def save(out: Path, checkpoint: Checkpoint, *, keep: int = 3) -> Path:
    """Write a checkpoint, then remove all but the newest `keep`, and those of later steps, which it replaces.

    It is written under another name, forced to the disk, and renamed: a kill at any moment leaves the old ones or the
    new one. One process calls this, inside `locked`.

    Returns:
        The folder `OUT/checkpoints/step-<8 digits>`.
    """
    folder = out / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    _sweep(folder)
    target = folder / f"step-{checkpoint.step:08d}"
    temporary = folder / f".tmp-{target.name}"
    temporary.mkdir()
    _write(temporary, checkpoint)
    if target.exists():  # damaged, or of a run that this one replaces
        target.rename(folder / f".tmp-old-{target.name}")
    temporary.rename(target)
    _sync(folder)
    _sync(out)
    steps = _folders(folder)
    kept = [step for step in steps if step <= checkpoint.step][-keep:]
    for path in [path for step, path in steps.items() if step not in kept]:
        path.rename(folder / f".tmp-old-{path.name}")  # so that an incomplete folder never has its name
    _sweep(folder)
    return target


def latest(out: Path) -> Checkpoint | None:
    """The newest whole checkpoint of a run's folder, or None if it has none; damaged ones are named in a warning.

    Raises:
        GraphError: all of its checkpoints are damaged; starting again at step 0 would remove them.
    """
    damages: list[str] = []
    for path in reversed(_folders(out / FOLDER).values()):
        try:
            found = read(path)
        except DamagedCheckpoint as damage:
            damages.append(str(damage))
            continue
        if damages:
            warnings.warn(f"{'; '.join(damages)}; resuming from step {found.step}", stacklevel=2)
        return found
    if damages:
        raise GraphError(
            f"{'; '.join(damages)}; no checkpoint is whole: restore one, or remove {out / FOLDER} to start at step 0"
        )
    return None


def steps(out: Path) -> list[int]:
    """The steps at which a run's folder has checkpoints, in order; damage is not checked."""
    return list(_folders(out / FOLDER))


def read(path: Path) -> Checkpoint:
    """Read one checkpoint's folder.

    Raises:
        DamagedCheckpoint: a file is missing, cut short, changed or cannot be read; the message names it.
    """
    document = _verified(path)
    tensors: dict[str, Any] = {
        name.removesuffix(".safetensors"): load_file(path / name) for name in document.pop("files")
    }
    scalars = document.pop("optimiser")
    if scalars is not None:
        tensors["optimiser"] = _joined(scalars, tensors["optimiser"])
    if _FINISHED in tensors:
        cut = len(document["part"]) + 1
        finished = {name[cut:]: tensor for name, tensor in tensors.pop(_FINISHED).items()}
        tensors["ema" if "lora" in tensors else "lora"] = finished
    try:
        return Checkpoint(**document, **tensors)
    except TypeError as error:
        raise DamagedCheckpoint(f"{path}: written by another version of graphbuild ({error})") from error


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Lock a run's folder on this machine inside a `with` block; a killed run leaves no lock.

    Raises:
        GraphError: another run holds the lock.
    """
    out.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(out / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.pread(descriptor, 200, 0).decode() or "another process"
            raise GraphError(f"{out}: {owner} is training into it; wait for it or choose another folder") from error
        _held.add(descriptor)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield
    finally:
        _held.discard(descriptor)
        os.close(descriptor)


def rng_state() -> dict[str, Tensor]:
    """State of this process's global torch generators, uint8. Training draws from none of them; other code may."""
    device = {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_initialized() else {}  # type: ignore[no-untyped-call]
    return {"cpu": torch.get_rng_state(), **device}


def set_rng_state(state: Mapping[str, Tensor]) -> None:
    """Put back what `rng_state` gave, as far as this process has the devices."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.set_rng_state(state["cuda"])


def _write(folder: Path, checkpoint: Checkpoint) -> None:
    scalars, moments = _split(checkpoint.optimiser) if checkpoint.optimiser else (None, {})
    finished = {f"{checkpoint.part}.{name}": tensor for name, tensor in (checkpoint.ema or checkpoint.lora).items()}
    tensors = {
        _FINISHED: finished, "lora": checkpoint.lora if checkpoint.ema else {}, "optimiser": moments,
        "rng": checkpoint.rng,
    }  # fmt: skip
    files = {}
    for part in [part for part in tensors if tensors[part]]:
        file = folder / f"{part}.safetensors"
        header = {"format": "pt", **checkpoint.header} if part == _FINISHED else None
        save_file({name: tensor.contiguous() for name, tensor in tensors[part].items()}, file, header)
        file.chmod(folder.stat().st_mode & 0o666)  # the umask's; safetensors makes files that only their owner can read
        _sync(file)
        files[file.name] = _digest(file)
    said = {name: value for name, value in vars(checkpoint).items() if name not in _PARTS}
    versions = {"graphbuild": graphbuild.__version__, **{name: version(name) for name in _PACKAGES}}
    said |= {"versions": versions, "files": files, "optimiser": scalars}
    document = folder / "state.json"
    document.write_text(json.dumps({**said, "digest": _digest_of(said)}, indent=1), encoding="utf-8")
    _sync(document)
    _sync(folder)


def _verified(path: Path) -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads((path / "state.json").read_text(encoding="utf-8"))
        digest = document.pop("digest")
        if digest != _digest_of(document):
            raise DamagedCheckpoint(f"{path / 'state.json'}: changed since it was written")
        for name, written in document["files"].items():
            if _digest(path / name) != written:
                raise DamagedCheckpoint(f"{path / name}: changed since it was written")
    except FileNotFoundError as error:
        raise DamagedCheckpoint(f"{error.filename}: missing") from error
    except OSError as error:
        raise DamagedCheckpoint(f"{error.filename}: {error.strerror}") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DamagedCheckpoint(f"{path / 'state.json'}: not what was written ({error})") from error
    return document


def _split(state: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """An optimiser's state as JSON values and tensors called `<parameter>.<moment>`."""
    entries = {(at, name): value for at, values in state["state"].items() for name, value in values.items()}
    tensors = {f"{at}.{name}": value for (at, name), value in entries.items() if isinstance(value, Tensor)}
    rest = [[at, name, value] for (at, name), value in entries.items() if not isinstance(value, Tensor)]
    return {"param_groups": state["param_groups"], "state": rest}, tensors


def _joined(scalars: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    state: dict[int, dict[str, Any]] = {}
    split = ((*key.split(".", 1), tensor) for key, tensor in tensors.items())
    for at, name, value in [*split, *scalars["state"]]:
        state.setdefault(int(at), {})[name] = value
    return {"state": state, "param_groups": scalars["param_groups"]}


def _digest(file: Path) -> str:
    hashed = xxhash.xxh3_128()
    with file.open("rb") as opened:
        while block := opened.read(1 << 22):
            hashed.update(block)
    return hashed.hexdigest()


def _digest_of(document: Mapping[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(document, sort_keys=True).encode())


def _folders(folder: Path) -> dict[int, Path]:
    """Checkpoints by step, in order."""
    found = {path: _STEP.fullmatch(path.name) for path in folder.glob("step-*")}
    return dict(sorted((int(name[1]), path) for path, name in found.items() if name))


def _sweep(folder: Path) -> None:
    for leftover in folder.glob(".tmp-*"):
        shutil.rmtree(leftover)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _let_go() -> None:
    """A forked child, such as a data worker, would hold the lock of a parent that was killed."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_let_go)

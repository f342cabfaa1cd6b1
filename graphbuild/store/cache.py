"""Arrays about a snapshot, computed once and kept in the user's cache folder. A cache that is damaged, or cannot be
written, only costs time: every array can be computed from the graph."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

KEPT_SNAPSHOTS = 32
_DIGEST = re.compile("[0-9a-f]{16}")

Arrays = dict[str, NDArray[Any]]
Form = tuple[DTypeLike, tuple[int | None, ...]]
"""dtype and shape of an array; None stands for any length."""
Scalar = TypeVar("Scalar", bound=np.generic)


def cache_folder() -> Path:
    """`$GRAPHBUILD_CACHE`, else `graphbuild` in the user's cache folder."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("GRAPHBUILD_CACHE") or home / "graphbuild")


def cached(
    digest: str, entry: str, forms: Mapping[str, Form], compute: Callable[[], Arrays], *, mapped: bool = True
) -> Arrays:
    """The arrays of a cache entry. If one is absent, damaged or of another form, they are computed, and saved if the
    cache is writable.

    Args:
        digest: of the snapshot.
        entry: a folder name.
        forms: dtype and shape that each array must have.
        mapped: return read-only memory maps, which processes share, instead of arrays in memory.
    """
    folder = cache_folder() / digest / entry
    if (found := _load(folder, forms, mapped)) is not None:
        return found
    arrays = compute()
    _save(folder, arrays)
    return (_load(folder, forms, mapped) if mapped else None) or arrays


def cached_array(
    digest: str, entry: str, dtype: type[Scalar], shape: tuple[int | None, ...], compute: Callable[[], NDArray[Scalar]]
) -> NDArray[Scalar]:
    """`cached` for an entry of one array, in memory."""
    return cached(digest, entry, {entry: (dtype, shape)}, lambda: {entry: compute()}, mapped=False)[entry]


def _load(folder: Path, forms: Mapping[str, Form], mapped: bool) -> Arrays | None:
    mode: Literal["r"] | None = "r" if mapped else None
    try:
        found = {name: np.load(folder / f"{name}.npy", mode, allow_pickle=False) for name in forms}
    except (OSError, ValueError, EOFError):  # absent or damaged
        return None
    # As plain arrays: indexing a memmap makes a memmap each time.
    return {name: array.view(np.ndarray) for name, array in found.items()} if _fit(found, forms) else None


def _fit(arrays: Arrays, forms: Mapping[str, Form]) -> bool:
    return all(
        arrays[name].dtype == dtype
        and arrays[name].ndim == len(shape)
        and all(at in (None, own) for own, at in zip(arrays[name].shape, shape, strict=True))
        for name, (dtype, shape) in forms.items()
    )


def _save(folder: Path, arrays: Arrays) -> None:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, ignore_cleanup_errors=True) as temp:
            new = Path(temp) / "new"
            new.mkdir()
            for name, array in arrays.items():
                np.save(new / f"{name}.npy", array, allow_pickle=False)
            shutil.rmtree(folder, ignore_errors=True)  # damaged, or it would have been loaded
            os.rename(new, folder)
        _forget_old(folder.parent.parent)
    except OSError:
        return  # without a cache everything is only slower


def _forget_old(folder: Path) -> None:
    """Keep the entries of the most recently used snapshots; leave files of other programs alone."""
    ours = [entry for entry in folder.iterdir() if _DIGEST.fullmatch(entry.name)]
    for old in sorted(ours, key=lambda entry: entry.stat().st_mtime)[:-KEPT_SNAPSHOTS]:
        shutil.rmtree(old, ignore_errors=True)

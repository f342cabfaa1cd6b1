"""Weights of a model: a hub repository at a commit or a local folder, found before work starts, never unpickled."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path
from typing import Any

import xxhash

from graphbuild.errors import MissingWeights

TRANSFORMERS = ("*.json", "*.txt", "*.model", "*.jinja", "*.safetensors")
"""Files of a transformers checkpoint."""

COPIES = ("*.fp16.*", "*.bf16.*", "*.non_ema.*", "onnx/*", "openvino/*", "flax/*")
"""Further copies of the same weights that many repositories hold; never fetched."""


_COMMIT = re.compile("[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One checkpoint that an annotator loads.

    Attributes:
        model: a hub repository (`org/name`, or `org/name@revision`), or a local file or folder.
        files: patterns of the files that are loaded.
        licence: of the published weights, as its model card says it.
        gigabytes: to download (10^9 bytes), about.
    """

    model: str
    files: tuple[str, ...] = TRANSFORMERS
    licence: str = "unknown"
    gigabytes: float = 0.0

    def at(self, model: str) -> Checkpoint:
        """The same files of another repository or folder; licence and size are known of this one alone."""
        ours = model.partition("@")[0] == self.repository
        return replace(self, model=model) if ours else Checkpoint(model, self.files)

    @property
    def local(self) -> bool:
        """True for a file or folder on this machine."""
        return os.path.exists(self.model)

    @property
    def repository(self) -> str:
        """The hub repository without its revision."""
        return self.model.partition("@")[0]

    @property
    def revision(self) -> str | None:
        """The branch, tag or commit that was asked for."""
        return None if self.local else self.model.partition("@")[2] or None

    @property
    def commercial(self) -> bool:
        """False if the licence is known to forbid commercial use."""
        words = self.licence.lower().replace("_", "-").split("-")
        return not ({"nc", "noncommercial", "research"} & set(words) or "non-commercial" in self.licence.lower())

    def identity(self) -> str:
        """`org/name@commit`, or a digest of the local files that are loaded: what pins the pixels.

        Raises:
            MissingWeights: it is not on this machine.
        """
        if self.local:
            self.folder()
            return f"files:{_digest(self._local_files())}"
        if _COMMIT.fullmatch(self.revision or ""):
            return self.model
        return f"{self.repository}@{self.folder().name}"

    def folder(self) -> Path:
        """The folder of the files on this machine, for `from_pretrained`; a local path is returned unchanged.

        Raises:
            MissingWeights: it is not on this machine, or incomplete.
        """
        if line := self.missing():
            raise MissingWeights(line)
        return Path(self.model) if self.local else self._snapshot()

    def missing(self) -> str | None:
        """One line on what is not on this machine and how to get it; None if nothing is missing. Uses no network."""
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

        if self.local:
            return None if self._local_files() else f"{self.model}: no file matches {', '.join(self.files)}"
        try:
            folder = self._snapshot()
        except HFValidationError:
            return f"{self.model}: no such file or folder, and not a repository of the Hugging Face hub"
        except LocalEntryNotFoundError:
            size = f" ({self.gigabytes:g} GB, {self.licence})" if self.gigabytes else ""
            return f"{self.model}{size}: graphbuild models fetch {self.model}"
        absent = [pattern for pattern in _expected(folder, self.files) if not any(folder.rglob(pattern))]
        return (
            f"{self.model}: {', '.join(absent)} is not here: graphbuild models fetch {self.model}" if absent else None
        )

    def fetch(self) -> Path:
        """Download missing files, once per machine for any number of processes.

        Raises:
            OSError, ValueError: as huggingface_hub raises them: no network, no such repository, access not granted.
        """
        from huggingface_hub import snapshot_download

        if self.local:
            return Path(self.model)
        return Path(snapshot_download(self.repository, revision=self.revision, **self._patterns()))

    def _snapshot(self) -> Path:
        from huggingface_hub import snapshot_download

        found = snapshot_download(self.repository, revision=self.revision, local_files_only=True, **self._patterns())
        return Path(found)

    def _patterns(self) -> dict[str, Any]:
        return {"allow_patterns": list(self.files), "ignore_patterns": list(COPIES)}

    def _local_files(self) -> tuple[str, ...]:
        root = Path(self.model)
        if root.is_file():
            return (str(root),)
        every = (path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
        return tuple(
            str(root / name)
            for name in sorted(every)
            if any(fnmatch(name, p) for p in self.files) and not any(fnmatch(name, p) for p in COPIES)
        )


def loaded_from(identity: str | None) -> Mapping[str, str]:
    """Hub repository -> `org/name@commit`, from an identity that a lineage document recorded."""
    pinned = (part for part in (identity or "").split() if "@" in part and "@server:" not in part)
    return {part.partition("@")[0]: part for part in pinned}


def _expected(folder: Path, files: tuple[str, ...]) -> Iterator[str]:
    """Weights first: a pattern that asks for weights has to match, and so does each shard an index names."""
    yield from (pattern for pattern in files if pattern.endswith((".safetensors", ".pth", ".pt", ".onnx")))
    for index in folder.rglob("*.safetensors.index.json"):
        names = set(json.loads(index.read_text())["weight_map"].values())
        yield from (str(index.parent.relative_to(folder) / name) for name in sorted(names))


def _digest(files: tuple[str, ...]) -> str:
    """Of names and contents; the folder's own name does not count."""
    root = os.path.dirname(files[0]) if len(files) == 1 else os.path.commonpath(files)
    whole = xxhash.xxh3_128()
    for file in files:
        stat = os.stat(file)
        whole.update(f"{os.path.relpath(file, root)} {_hash(file, stat.st_size, stat.st_mtime_ns)}\n".encode())
    return whole.hexdigest()


@lru_cache(maxsize=1024)
def _hash(file: str, size: int, changed: int) -> str:
    digest = xxhash.xxh3_128()
    with open(file, "rb") as stream:
        while block := stream.read(1 << 24):
            digest.update(block)
    return digest.hexdigest()

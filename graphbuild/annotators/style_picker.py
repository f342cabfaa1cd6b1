"""Style references from a folder of pictures."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from graphbuild.annotators.base import Annotator, Derived, Request, Skip, Variants, parameter
from graphbuild.errors import MissingWeights, UnusableImage
from graphbuild.hashing import checksum, digest_of
from graphbuild.images.codecs import check_image
from graphbuild.images.decode import suffixes


@dataclass(frozen=True, kw_only=True)
class StylePicker(Annotator):
    """Style references: for each item `variants` different pictures from a folder of yours, stored byte for byte.

    A hash of the item and the file names picks them, so that all are picked equally often and another file changes few
    of the picks. The files' names and contents are part of the version. Files that cannot be decoded and
    further copies of a picture are left out. Every pick is stored whole: reduce large files first. Attrs: `file`, the
    name below the folder.

    Args:
        folder: where the pictures are, at any depth; every worker has to see it. Hidden files are left out.
        variants: picks of one item; with fewer pictures than that the rest is skipped with `too_few_styles`.
    """

    makes: ClassVar[tuple[str, ...]] = ("style_reference",)
    item_facts: ClassVar[tuple[str, ...]] = ()
    folder: str = parameter("", output=False, trusted=True)
    variants: Variants = parameter(3, output=False)

    def missing(self) -> list[str]:
        what = f"{self.folder!r} has no pictures ({' '.join(sorted(suffixes()))})" if self.folder else "not given"
        line = f"folder: {what}; name a folder of style pictures in a pipeline: {{use: style_picker, folder: styles}}"
        return super().missing() + ([] if self._files() else [line])

    def identity(self) -> str:
        if lines := self.missing():
            raise MissingWeights(lines[0])
        return f"files:{digest_of([[name, checksum(self._read(name))] for name in self._files()])}"

    def load(self, device: str) -> tuple[str, ...]:
        """Names of the pictures below the folder, sorted, without copies.

        Raises:
            ValueError: not one of the files can be decoded.
        """
        names: dict[str, str] = {}
        refused: list[str] = []
        for name in self._files():
            data = self._read(name)
            try:
                check_image(data)
            except UnusableImage as error:
                refused.append(f"{name} ({error.reason})")
            else:
                names.setdefault(checksum(data), name)
        if not names:
            raise ValueError(f"folder: no file in {self.folder} is a picture: {', '.join(refused[:5])}")
        return tuple(names.values())

    def annotate(self, batch: Sequence[Request], model: tuple[str, ...]) -> list[Derived | Skip]:
        return [self._picked(request, model) for request in batch]

    def _picked(self, request: Request, names: tuple[str, ...]) -> Derived | Skip:
        # By the item and not by the request's seed: no two variants may pick the same.
        picks = heapq.nsmallest(request.variant + 1, names, key=lambda name: _rank(request.item.item_id, name))
        if request.variant >= len(picks):
            return Skip("too_few_styles")
        name = picks[request.variant]
        return Derived({"style_reference": self._read(name)}, attrs={"file": name})

    def _files(self) -> list[str]:
        """Every picture below the folder, by its name there, sorted."""
        root, endings = Path(self.folder), suffixes()
        pictures = (path for path in root.rglob("*") if path.suffix.lower() in endings and path.is_file())
        names = (path.relative_to(root) for path in pictures) if self.folder else ()
        return sorted(name.as_posix() for name in names if not any(part.startswith(".") for part in name.parts))

    def _read(self, name: str) -> bytes:
        return Path(self.folder, name).read_bytes()


def _rank(item_id: str, name: str) -> bytes:
    return hashlib.blake2b(f"{item_id}/{name}".encode(), digest_size=8).digest()

"""Frames of videos."""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import Any, ClassVar, Literal

import numpy as np

from graphbuild.images.codecs import Pixels, codec_of
from graphbuild.kinds.registry import Kind, kind_of
from graphbuild.sources.base import Content, Entry, Source, SourceItem, Unusable, location
from graphbuild.sources.places import Place

ENDINGS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")


@dataclass(frozen=True, kw_only=True)
class Video(Source):
    """Frames of the videos under `path`, decoded by OpenCV and stored as JPEG. Items of one video share a group, so
    that they are on one side of a split.

    Args:
        path: a folder or a file on this machine.
        frames: how many are taken of each video, evenly spaced from its first.
        each: `item`: every frame is an item, with the key `video#frame`; `variant`: a video is an item, its first frame
            is `image`, and the others are the variants of `reference`.
    """

    name: ClassVar[str] = "video"
    makes: ClassVar[tuple[str | Kind, ...]] = ("image",)
    path: Any = location()
    frames: int = 8
    each: Literal["item", "variant"] = "item"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.each not in ("item", "variant"):
            raise ValueError(f"source 'video': each: {self.each!r}; allowed: item, variant")
        if not 1 + (self.each == "variant") <= self.frames <= 10_000:
            raise ValueError(f"source 'video': frames: {self.frames}; allowed: 1..10000, as variants from 2")

    def kinds(self) -> tuple[Kind, ...]:
        return tuple(map(kind_of, ("image", "reference") if self.each == "variant" else ("image",)))

    def variants(self) -> Mapping[str, int]:
        return {"reference": self.frames - 1} if self.each == "variant" else {}

    def entries(self) -> Sequence[Entry]:
        """Every frame that is taken, or every video.

        Raises:
            ValueError: no videos.
        """
        place = self._place()
        entries: list[Entry] = []
        for file, stamp in place.listing(ENDINGS):
            taken = self._taken(place, file, stamp) if self.each == "item" else []
            entries += [Entry(f"{file}#{frame:07d}", stamp) for frame in taken]
            # A video without frames is an item too: its edge says what is wrong.
            entries += [] if taken else [Entry(file if self.each == "variant" else f"{file}#{0:07d}", stamp)]
        if not entries:
            raise ValueError(f"source 'video': no videos ({' '.join(ENDINGS)}) under {self.path}; give --path")
        return sorted(entries, key=lambda entry: entry.key)

    def read(self, keys: Sequence[str]) -> Iterator[SourceItem]:
        """The frames, in order. A video is decoded once for its frames that follow each other in `keys`."""
        place = self._place()
        for file, group in groupby(keys, key=lambda key: key.rpartition("#")[0] if self.each == "item" else key):
            yield from self._whole(place, file) if self.each == "variant" else self._single(place, file, list(group))

    def _whole(self, place: Place, file: str) -> Iterator[SourceItem]:
        pictures = list(_decoded(place.path(file), self._taken(place, file, place.stamp(file))))
        first, *others = pictures or [Unusable("undecodable", "no frame can be decoded")]
        yield self._item(file, file, {"image": first, "reference": others}, 0)

    def _single(self, place: Place, file: str, keys: Sequence[str]) -> Iterator[SourceItem]:
        numbers = [int(key.rpartition("#")[2]) for key in keys]
        for key, number, picture in zip(keys, numbers, _decoded(place.path(file), numbers), strict=True):
            yield self._item(key, file, {"image": picture}, number)

    def _place(self) -> Place:
        place = Place.at(self.path, self.name)
        if not place.local:
            raise ValueError(f"source 'video': {self.path} is an address; give --path with a folder on this machine")
        return place

    def _taken(self, place: Place, file: str, stamp: str) -> list[int]:
        count = _frames(place.path(file), stamp)
        most = min(self.frames, count)
        return [round(at * count / most) for at in range(most)]

    def _item(self, key: str, file: str, pictures: Mapping[str, Any], number: int) -> SourceItem:
        readable = not isinstance(pictures["image"], Unusable)
        place = self._place()
        digest = _digest(place.path(file), place.stamp(file)) if readable else ""
        return SourceItem(
            key=key,
            uri=key,
            original=f"{digest}#{number}".encode() if readable else None,
            nodes={kind: _stored(value) for kind, value in pictures.items()},
            group=posixpath.splitext(file)[0],
        )


def _stored(value: Any) -> Any:
    """Arrays as JPEG files, which is what a picture kind stores."""
    if isinstance(value, list):
        return [_stored(each) for each in value]
    content: Content = value if isinstance(value, Unusable) else codec_of("jpeg").encode(value).data
    return content


@lru_cache(maxsize=4096)
def _frames(path: str, stamp: str) -> int:
    """How many frames a video says it has; 0 if it cannot be opened."""
    import cv2

    video = cv2.VideoCapture(path)
    try:
        return max(0, int(video.get(cv2.CAP_PROP_FRAME_COUNT))) if video.isOpened() else 0
    finally:
        video.release()


@lru_cache(maxsize=64)
def _digest(path: str, stamp: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _decoded(path: str, frames: Sequence[int]) -> Iterator[Pixels | Unusable]:
    """Those frames, ascending, H x W x 3 RGB uint8."""
    import cv2

    video = cv2.VideoCapture(path)
    try:
        at = 0
        for number in frames:
            while at < number and video.grab():
                at += 1
            frame = video.read()[1] if at == number else None
            at += 1
            if frame is None:
                yield Unusable("undecodable", f"frame {number} cannot be decoded")
            else:
                yield np.ascontiguousarray(frame[:, :, ::-1], np.uint8)
    finally:
        video.release()

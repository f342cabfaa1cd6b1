"""Files that belong together by their names: `image/a.jpg`, `depth/a.png`, `caption/a.txt`."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from graphbuild.errors import counted
from graphbuild.hashing import digest_of
from graphbuild.images.decode import suffixes
from graphbuild.kinds.registry import KINDS
from graphbuild.sources.base import Content, Entry, Listing, SourceItem, Unusable
from graphbuild.sources.captions import shown
from graphbuild.sources.columns import Mapped, Node
from graphbuild.sources.places import Place, nbytes_of

_TEXTS = (".txt", ".json", ".caption")
_SLOT = re.compile(r"\\\{(\w+)\\\}")

Found = Mapping[str, Sequence[tuple[str, Mapping[str, str]]]]
"""Pattern -> (file, what its slots stand for), sorted by file."""


@dataclass(frozen=True, kw_only=True)
class Pairs(Mapped):
    """Items whose pictures lie in several folders under `path`, matched by name.

    A column is a folder (`depth` stands for `depth/{key}.*`) or a pattern with slots: `{key}` any path, any other slot
    a part of a path without a slash, `*` anything without a slash. Files of two patterns belong together where the
    slots they share are equal. Without `nodes`, every folder under `path` that is named like a kind is that kind.

    - `image: "{subject}/{view}.jpg"` makes an item of every picture, with the key `subject/view`; a fact may name a
      slot: `group: "{subject}"`.
    - `reference: {of: "{subject}/*.jpg", variants: 3}` gives it the three next pictures of the same subject, without
      itself.
    """

    name: ClassVar[str] = "pairs"

    def _read_map(self) -> tuple[Node, ...]:
        """Without a map, the folders that are named like kinds."""
        if self.nodes or self.path is None:
            return super()._read_map()
        files = _files(self._place())
        folders = sorted({file.partition("/")[0] for file, _ in files if "/" in file} & KINDS.keys())
        stored = [name for name in folders if not KINDS[name].is_computed]
        if not stored:
            raise ValueError(f"no folder under {self.path} is named like a kind; say which there are with nodes")
        return tuple(Node.declared(name, name) for name in sorted(stored, key=lambda name: name != "image"))

    def listing(self) -> Listing:
        """Every file that the picture's pattern matches; items without other files are counted.

        Raises:
            ValueError: no file matches.
        """
        place, declared = self._place(), self.declared()
        stamps = dict(_files(place))
        found = _matches(stamps, declared)
        pictures = found[declared[0].of[0]]
        if not pictures:
            raise ValueError(
                f"source {self.name!r}: no file under {self.path} matches {declared[0].of[0]!r}; it has "
                f"{shown(sorted(stamps)) or 'none'}"
            )
        entries, missing = [], dict[str, list[str]]()
        index = {pattern: _by_slots(files) for pattern, files in found.items()}
        for file, slots in pictures:
            belongs = _belonging(declared, index, file, slots)
            for kind, files in belongs.items():
                if not files:
                    missing.setdefault(kind, []).append(_key(file, slots))
            parts = [stamps[each] for files in belongs.values() for each in files]
            stamp = stamps[file] if len(parts) < 2 else digest_of(parts)
            entries.append(Entry(_key(file, slots), stamp, nbytes=sum(map(nbytes_of, parts))))
        notes = (f"{kind}: no file for {counted(len(keys), 'item')} ({shown(keys)})" for kind, keys in missing.items())
        return Listing(tuple(sorted(entries, key=lambda entry: entry.key)), tuple(notes))

    def entries(self) -> Sequence[Entry]:
        """Those of the listing."""
        return tuple(self.listing().entries)

    def read(self, keys: Sequence[str]) -> Iterator[SourceItem]:
        """The items, in order."""
        place, declared = self._place(), self.declared()
        found = _matches(dict(_files(place)), declared)
        index = {pattern: _by_slots(files) for pattern, files in found.items()}
        pictures = {_key(file, slots): (file, slots) for file, slots in found[declared[0].of[0]]}
        for key in keys:
            if key not in pictures:
                yield SourceItem(key=key, uri=key, original=None, nodes={declared[0].kind.name: Unusable("missing")})
                continue
            file, slots = pictures[key]
            row: dict[str, Any] = {**slots, "__file__": file}
            belongs = _belonging(declared, index, file, slots)
            for node in declared:
                contents = [_read(place, each) for each in belongs[node.kind.name]]
                row |= dict(zip(node.of, contents, strict=False)) if len(node.of) > 1 else {
                    node.of[0]: contents if node.variants > 1 else next(iter(contents), None)
                }  # fmt: skip
            yield self.item(key, row, place.read)

    def _place(self) -> Place:
        return Place.at(self.path, self.name)


def _files(place: Place) -> list[tuple[str, str]]:
    return place.listing([*suffixes(), *_TEXTS])


def _read(place: Place, file: str) -> Content:
    return place.read(file)


def _key(file: str, slots: Mapping[str, str]) -> str:
    return slots.get("key") or posixpath.splitext(file)[0]


def _pattern(column: str) -> re.Pattern[str]:
    """The pattern of a column; a folder's name stands for the files in it."""
    text = column if "{" in column or "*" in column else f"{column}/{{key}}.*"
    escaped = re.escape(text).replace(r"\*", "[^/]*")
    return re.compile(_SLOT.sub(lambda slot: f"(?P<{slot[1]}>{'.+?' if slot[1] == 'key' else '[^/]+?'})", escaped))


def _matches(stamps: Mapping[str, str], declared: Sequence[Node]) -> Found:
    found = {}
    for column in (column for node in declared for column in node.of):
        matcher = _pattern(column)
        matched = ((file, matcher.fullmatch(file)) for file in sorted(stamps))
        found[column] = [(file, match.groupdict()) for file, match in matched if match]
    return found


def _by_slots(files: Sequence[tuple[str, Mapping[str, str]]]) -> Mapping[tuple[tuple[str, str], ...], list[str]]:
    index: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for file, slots in files:
        index.setdefault(tuple(sorted(slots.items())), []).append(file)
    return index


def _belonging(
    declared: Sequence[Node],
    index: Mapping[str, Mapping[tuple[tuple[str, str], ...], list[str]]],
    picture: str,
    slots: Mapping[str, str],
) -> dict[str, list[str]]:
    """Kind -> the files of an item, a column each, or those of one column that has variants."""
    belongs: dict[str, list[str]] = {declared[0].kind.name: [picture]}
    for node in declared[1:]:
        files: list[str] = []
        for column in node.of:
            names: Iterable[str] = next((dict(key).keys() for key in index[column]), ())
            shared = tuple(sorted((name, slots[name]) for name in names if name in slots))
            candidates = index[column].get(shared, [])
            if node.variants > len(node.of):  # the next ones after the picture, around the end
                start = next((at for at, file in enumerate(candidates) if file > picture), 0)
                candidates = [file for file in candidates[start:] + candidates[:start] if file != picture]
                files += candidates[: node.variants]
            else:
                files += candidates[:1]
        belongs[node.kind.name] = files
    return belongs

"""Pictures of several subjects, composed of another graph's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from graphbuild.errors import GraphError
from graphbuild.hashing import digest_of
from graphbuild.images.codecs import Pixels, check_image, codec_of
from graphbuild.images.composition import Composition, CutOut, compose
from graphbuild.images.decode import suffixes
from graphbuild.images.rendering import drawn_colours
from graphbuild.kinds.registry import Kind
from graphbuild.sources.base import Entry, Given, Source, SourceItem, Unusable, location
from graphbuild.sources.places import Place
from graphbuild.store.graph import Graph

_NEEDED = ("image", "foreground_mask")


@dataclass(frozen=True, slots=True)
class Subject:
    """An item of the other graph that has a picture and a mask of its subject."""

    item_ix: int
    name: str
    group: str
    licence: str | None
    attribution: str | None


@dataclass(frozen=True, kw_only=True)
class Compose(Source):
    """Subjects of another graph, cut out by their masks and laid side by side over backgrounds (C.-H. Yeh et al.,
    "Gen4Gen: Generative Data Pipeline for Generative Multi-Concept Composition", arXiv 2402.15504).

    Each item has the composed `image` (JPEG), `boxes` and `mask` of its subjects in the same colours, and as variants
    of `reference` the subjects' own pictures, in the order of the labels. Its caption names them from left to right:
    `source_caption` makes it a kind. A subject is called by the item's `subject`, else its `category`, else its group,
    else "thing". Nothing is relit, and shadows are not drawn.

    The groups of the other graph are dealt into pools of `pool`; an item mixes subjects of one pool, which is its own
    group, so that no subject is on both sides of a split. The graph has to be complete: if more items come to it,
    other subjects are drawn for the same keys, which a run then refuses.

    Args:
        path: a graph with the kinds `image` and `foreground_mask`.
        backgrounds: a folder of pictures.
        count: how many items.
        least, most: how many subjects in each, 2..8.
        pool: how many groups are mixed with each other, at least `most`.
        resolution: long side of the pictures in pixels.
        seed: of all draws.
    """

    name: ClassVar[str] = "compose"
    makes: ClassVar[tuple[str | Kind, ...]] = ("image", "reference", "boxes", "mask")
    path: Any = location()
    backgrounds: Any = location()
    count: int = 1000
    least: int = 2
    most: int = 3
    pool: int = 8
    resolution: int = 1024
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 2 <= self.least <= self.most <= 8:
            raise ValueError(
                f"source 'compose': least {self.least}, most {self.most}; allowed: 2 <= least <= most <= 8"
            )
        if self.pool < self.most:
            raise ValueError(f"source 'compose': pool: {self.pool}; allowed: at least most, which is {self.most}")
        for name, value, low in (("count", self.count, 1), ("resolution", self.resolution, 64), ("seed", self.seed, 0)):
            if value < low:
                raise ValueError(f"source 'compose': {name}: {value}; allowed: from {low}")

    def variants(self) -> Mapping[str, int]:
        return {"reference": self.most}

    def entries(self) -> Sequence[Entry]:
        """`count` items.

        Raises:
            ValueError: no graph, no backgrounds, or too few groups of subjects.
        """
        graph, pools = self._pools()
        stamp = digest_of([graph.digest, len(pools), self._places()[1]])
        return [Entry(f"{number:07d}", stamp) for number in range(self.count)]

    def read(self, keys: Sequence[str]) -> Iterator[SourceItem]:
        """The items, in order."""
        graph, pools = self._pools()
        place, files = self._places()
        for key in keys:
            rng = np.random.Generator(np.random.PCG64([self.seed, int(key)]))
            number = int(key) % len(pools)
            chosen = self._chosen(pools[number], rng)
            data = place.read(files[int(rng.integers(len(files)))][0])
            if isinstance(data, Unusable):
                yield SourceItem(key=key, uri=key, original=None, nodes={"image": data})
                continue
            cut_outs = [_cut_out(graph, subject) for subject in chosen]
            made = compose(_fitted(check_image(data)[1], self.resolution), cut_outs, rng)
            yield _item(key, graph, chosen, made, group=f"pool-{number:05d}")

    def _chosen(self, pool: Sequence[Sequence[Subject]], rng: np.random.Generator) -> list[Subject]:
        """Of different groups, one picture of each."""
        count = int(rng.integers(min(self.least, len(pool)), min(self.most, len(pool)), endpoint=True))
        groups = rng.permutation(len(pool))[:count].tolist()
        return [pool[at][int(rng.integers(len(pool[at])))] for at in groups]

    def _pools(self) -> tuple[Graph, Sequence[Sequence[Sequence[Subject]]]]:
        """The other graph, and its pools: each some groups of subjects. The last one takes what is left over."""
        if self.path is None:
            raise ValueError("source 'compose' needs a path: the graph whose subjects are composed (--path)")
        graph = _opened(str(self.path))
        groups = _groups(graph)
        if len(groups) < self.least:
            raise ValueError(
                f"source 'compose': {self.path} has {len(groups)} groups with {' and '.join(_NEEDED)}; allowed: from "
                f"{self.least}"
            )
        count = max(1, len(groups) // self.pool)
        return graph, [groups[at::count] for at in range(count)]

    def _places(self) -> tuple[Place, Sequence[tuple[str, str]]]:
        if self.backgrounds is None:
            raise ValueError("source 'compose' needs backgrounds: a folder of pictures")
        place = Place.at(self.backgrounds, self.name)
        files = place.listing([*suffixes()])
        if not files:
            raise ValueError(f"source 'compose': no pictures under {self.backgrounds}; give backgrounds")
        return place, files


def _opened(path: str) -> Graph:
    try:
        return Graph.open(path)
    except GraphError as error:
        raise ValueError(f"source 'compose': {path} is no graph that can be read: {error}") from error


def _groups(graph: Graph) -> list[list[Subject]]:
    """The subjects of each group, in an order that says nothing of their names."""
    if absent := [kind for kind in _NEEDED if kind not in graph.head]:
        raise ValueError(
            f"source 'compose': {graph.url} has no {' and no '.join(absent)}; it has {', '.join(graph.head)}"
        )
    there = np.logical_and.reduce([graph.presence(kind)[:, 0] for kind in _NEEDED])
    groups: dict[str, list[Subject]] = {}
    for row in graph.items().to_pylist():
        if there[row["item_ix"]] and row["item_ix"] not in graph.excluded_items:
            group = row["group"] or row["key"]
            name = row["subject"] or row["category"] or row["group"] or "thing"
            subject = Subject(row["item_ix"], name, group, row["licence"], row["attribution"])
            groups.setdefault(group, []).append(subject)
    return [groups[name] for name in sorted(groups, key=digest_of)]


def _cut_out(graph: Graph, subject: Subject) -> CutOut:
    picture, mask = (graph.read(subject.item_ix, kind) for kind in _NEEDED)
    return CutOut.of(picture.array(), mask.values() > 127)


def _fitted(picture: Pixels, longest: int) -> Pixels:
    import cv2

    height, width = picture.shape[:2]
    scale = longest / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)  # type: ignore[return-value]


def _item(key: str, graph: Graph, chosen: Sequence[Subject], made: Composition, *, group: str) -> SourceItem:
    height, width = made.labels.shape
    colours = drawn_colours(len(chosen), int(key))
    seen = [
        {"label": subject.name, "box": list(box), "colour": colour}
        for subject, box, colour in zip(chosen, made.boxes, colours, strict=True)
        if box is not None
    ]
    labels = {"palette": [[0, 0, 0], *colours], "labels": ["", *(subject.name for subject in chosen)]}
    picture = codec_of("jpeg444").encode(made.picture).data
    return SourceItem(
        key=key,
        uri=key,
        original=picture,
        nodes={
            "image": picture,
            "reference": [graph.read(subject.item_ix, "image").bytes for subject in chosen],
            "boxes": {"width": width, "height": height, "boxes": seen},
            "mask": Given(made.labels, labels),
        },
        licence=_joined(subject.licence for subject in chosen),
        attribution=_joined(subject.attribution for subject in chosen),
        group=group,
        caption=_caption(chosen, made),
        meta={"subjects": [subject.item_ix for subject in chosen]},
    )


def _caption(chosen: Sequence[Subject], made: Composition) -> str:
    """The subjects from left to right: `A photo of a dog, a red cup and a lamp.`"""
    at = [(box[0] + box[2], subject.name) for subject, box in zip(chosen, made.boxes, strict=True) if box is not None]
    names = [_with_article(name.replace("_", " ")) for _, name in sorted(at)]
    return f"A photo of {', '.join(names[:-1])} and {names[-1]}." if len(names) > 1 else f"A photo of {names[0]}."


def _with_article(name: str) -> str:
    if name.lower().startswith(("a ", "an ", "the ")):
        return name
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def _joined(values: Any) -> str | None:
    return "; ".join(dict.fromkeys(filter(None, values))) or None

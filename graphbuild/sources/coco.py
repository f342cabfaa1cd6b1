"""COCO: pictures with boxes, masks, keypoints and captions in JSON files."""

from __future__ import annotations

import json
import posixpath
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from graphbuild.hashing import digest_of
from graphbuild.images.rendering import KEYPOINTS, drawn_colours
from graphbuild.kinds.registry import Kind, kind_of
from graphbuild.sources.base import Entry, Given, Source, SourceItem, location
from graphbuild.sources.places import Place, nbytes_of

CAPTIONS = 5
"""How many captions a picture of COCO has."""

_POINTS = (
    *("nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow"),
    *("right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle"),
    "right_ankle",
)
"""Keypoints in the order of COCO's files."""

_OBJECT = ("id", "bbox", "segmentation", "keypoints", "iscrowd")

Document = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Coco(Source):
    """A data set in COCO's format (T.-Y. Lin et al., arXiv 1405.0312): pictures, and `annotations` about them.

    `boxes` have the names of their categories; `mask` is a label map of the categories, small objects above; `pose` the
    people with keypoints, the neck between their shoulders; `caption` up to five variants. What a file does not have is
    skipped. Licence and address of a picture are those of the file.

    Args:
        path: the folder of the data set.
        annotations: JSON files below `path`; by default all in `annotations/`.
        images: the folder of the pictures below `path`; by default the only one beside `annotations`.
        give: which kinds, the picture first.
    """

    name: ClassVar[str] = "coco"
    path: Any = location()
    annotations: Sequence[str] = ()
    images: str | None = None
    give: Sequence[str] = field(default=("image", "boxes", "mask", "pose", "caption"))

    def __post_init__(self) -> None:
        super().__post_init__()
        allowed = ("image", "boxes", "mask", "pose", "caption")
        wrong = [kind for kind in self.give if kind not in allowed]
        if wrong or not self.give or self.give[0] != "image":
            raise ValueError(f"source 'coco': give: {list(self.give)}; allowed: image first, then {', '.join(allowed)}")
        for name in ("annotations", "give"):
            object.__setattr__(self, name, list(getattr(self, name)))

    def kinds(self) -> tuple[Kind, ...]:
        return tuple(map(kind_of, self.give))

    def variants(self) -> Mapping[str, int]:
        return {"caption": CAPTIONS} if "caption" in self.give else {}

    def entries(self) -> Sequence[Entry]:
        """Every picture that the files name, with a digest of what they say of it.

        Raises:
            ValueError: no files, or they are not COCO's.
        """
        place, pictures = self._place(), self._pictures()
        folder = self._folder(place)
        stamps = {file: stamp for file, stamp in place.listing([""]) if not file.endswith(".json")}
        entries = []
        for name, said in sorted(pictures.items()):
            stamp = stamps.get(posixpath.join(folder, name), "missing")
            entries.append(Entry(name, f"{stamp}-{digest_of(said)}", nbytes=nbytes_of(stamp)))
        return entries

    def read(self, keys: Sequence[str]) -> Iterator[SourceItem]:
        """The pictures, in order, with what the files say of them."""
        place, pictures = self._place(), self._pictures()
        folder = self._folder(place)
        for key in keys:
            said = pictures[key]
            data = place.read(posixpath.join(folder, key))
            nodes: dict[str, Any] = {"image": data}
            nodes |= {kind: made for kind in self.give[1:] if (made := _NODES[kind](said)) is not None}
            yield SourceItem(
                key=key,
                uri=posixpath.join(folder, key),
                original=data if isinstance(data, bytes) else None,
                nodes=nodes,
                caption=next(iter(said["captions"]), None),
                licence=said["licence"],
                attribution=said["attribution"],
            )

    def _place(self) -> Place:
        return Place.at(self.path, self.name)

    def _folder(self, place: Place) -> str:
        if self.images is not None:
            return self.images
        folders = {file.rpartition("/")[0] for file, _ in place.listing([".jpg", ".jpeg", ".png"])}
        if len(folders) != 1:
            raise ValueError(
                f"source 'coco': pictures lie in {len(folders)} folders under {self.path} "
                f"({', '.join(sorted(folders)[:5])}); say which with images"
            )
        return folders.pop()

    def _pictures(self) -> Mapping[str, Document]:
        """File name -> what the annotations say."""
        place = self._place()
        files = list(self.annotations) or [
            file for file, _ in place.listing([".json"]) if file.startswith("annotations/") or "/" not in file
        ]
        if not files:
            raise ValueError(f"source 'coco': no JSON files in {self.path}/annotations; say which with annotations")
        merged: dict[str, dict[str, Any]] = {}
        for file in files:
            for name, said in _parsed(str(self.path), file, place.stamp(file)).items():
                known = merged.setdefault(name, {**said, "objects": [], "captions": []})
                known["captions"] = [*known["captions"], *said["captions"]]
                have = {each["id"]: each for each in known["objects"]}
                for each in said["objects"]:  # instances and keypoints are of the same objects
                    have[each["id"]] = {**have.get(each["id"], {}), **each}
                known["objects"] = [have[identity] for identity in sorted(have)]
        return merged


@lru_cache(maxsize=8)
def _parsed(root: str, file: str, stamp: str) -> Mapping[str, Document]:
    # Remembered, because sources are read unit by unit; another stamp is another file.
    data = Place.at(root, Coco.name)
    try:
        with data.open(file) as opened:
            document = json.load(opened)
        pictures = {image["id"]: image for image in document["images"]}
        names = {each["id"]: each["name"] for each in document.get("categories", [])}
        licences = {each["id"]: each.get("name") for each in document.get("licenses", [])}
        found: dict[Any, dict[str, Any]] = {
            identity: {
                "width": image["width"],
                "height": image["height"],
                "objects": [],
                "captions": [],
                "licence": licences.get(image.get("license")),
                "attribution": image.get("flickr_url") or image.get("coco_url"),
            }
            for identity, image in pictures.items()
        }
        for each in document["annotations"]:
            said = found[each["image_id"]]
            if "caption" in each:
                said["captions"].append(" ".join(each["caption"].split()))
            else:
                fields = {
                    key: each[key] for key in ("id", "bbox", "segmentation", "keypoints", "iscrowd") if key in each
                }
                said["objects"].append({**fields, "label": names[each["category_id"]]})
        return {pictures[identity]["file_name"]: said for identity, said in found.items()}
    except (FileNotFoundError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"source 'coco': {file} is no file of COCO's format ({type(error).__name__}: {error}); say which are with "
            "annotations"
        ) from error


def _colours(said: Document) -> dict[str, list[int]]:
    """Category -> its colour in this picture."""
    labels = sorted({each["label"] for each in said["objects"]})
    seed = int(digest_of(labels), 16) % 2**32
    return dict(zip(labels, drawn_colours(len(labels), seed), strict=True))


def _boxes(said: Document) -> Document | None:
    colours, boxes = _colours(said), []
    for each in said["objects"]:
        left, top, width, height = each["bbox"]
        if width > 0 and height > 0 and not each.get("iscrowd"):
            box = [left, top, left + width, top + height]
            boxes.append({"label": each["label"], "box": box, "colour": colours[each["label"]]})
    return {"width": said["width"], "height": said["height"], "boxes": boxes} if boxes else None


def _mask(said: Document) -> Given | None:
    from pycocotools import mask as rle

    objects = [each for each in said["objects"] if each.get("segmentation")]
    if not objects:
        return None
    height, width = said["height"], said["width"]
    colours = _colours({**said, "objects": objects})
    labels = ["", *colours]
    drawn = np.zeros((height, width), np.uint8)
    shapes = []
    for each in objects:
        parts = rle.frPyObjects(each["segmentation"], height, width)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # its arrays do not know numpy 2's `copy`
            whole = rle.decode(rle.merge(parts) if isinstance(parts, list) else parts)
        shapes.append((whole.astype(bool), labels.index(each["label"])))
    for shape, label in sorted(shapes, key=lambda pair: -int(pair[0].sum())):
        drawn[shape] = label
    return Given(drawn, {"labels": labels, "palette": [[0, 0, 0], *colours.values()]})


def _pose(said: Document) -> Document | None:
    people = [_person(each["keypoints"]) for each in said["objects"] if any(each.get("keypoints") or ())]
    return {"width": said["width"], "height": said["height"], "people": people} if people else None


def _person(flat: Sequence[float]) -> Document:
    """Keypoints of COCO (x, y, 0 unlabelled, 1 hidden, 2 seen) in the order of OpenPose."""
    found: dict[str, list[float] | None] = {}
    for at, name in enumerate(_POINTS):
        x, y, seen = flat[3 * at : 3 * at + 3]
        found[name] = [x, y, 1.0 if seen == 2 else 0.5] if seen else None
    left, right = found["left_shoulder"], found["right_shoulder"]
    found["neck"] = [(a + b) / 2 for a, b in zip(left, right, strict=True)] if left and right else None
    return {"keypoints": [found[name] for name in KEYPOINTS]}


def _captions(said: Document) -> list[str] | None:
    return list(said["captions"]) or None


_NODES = {"boxes": _boxes, "mask": _mask, "pose": _pose, "caption": _captions}

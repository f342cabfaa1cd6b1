"""Poses, boxes, label maps and captions as annotations in COCO's format (T.-Y. Lin et al., arXiv 1405.0312)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphbuild.images.node import Node
from graphbuild.images.rendering import KEYPOINTS, LIMBS
from graphbuild.store.export.items import ExportItem

FILES: Mapping[str, str] = {"boxes": "instances", "labels": "segments", "pose": "person_keypoints", "text": "captions"}
"""Codec -> the file of its annotations."""


def annotations_of(item: ExportItem) -> list[dict[str, Any]]:
    """The annotations of one item, each with `file`, the name of its document; ids and categories come later."""
    found: list[dict[str, Any]] = []
    for kind, nodes in item.nodes.items():
        for node in nodes:
            if node is not None and node.codec in FILES:
                about = {"file": f"{FILES[node.codec]}_{kind}", "image_id": item.row["item_ix"]}
                found += [{**about, **each} for each in _annotations(node)]
    return found


def document(images: Sequence[Mapping[str, Any]], annotations: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """A COCO document: pictures, and annotations with ids, whose `label` becomes a category."""
    listed = [dict(each) for each in annotations]
    names = sorted({each["label"] for each in listed if "label" in each})
    numbers = {name: number for number, name in enumerate(names, 1)}
    for number, each in enumerate(listed, 1):
        each["id"] = number
        if "label" in each:
            each["category_id"] = numbers[each.pop("label")]
    keypoints = {"keypoints": list(KEYPOINTS), "skeleton": [[a + 1, b + 1] for a, b in LIMBS]}
    poses = any("keypoints" in each for each in listed)
    categories = [{"id": numbers[name], "name": name, **(keypoints if poses else {})} for name in names]
    # pycocotools asks for the category of every annotation where there are categories: captions have none
    return {"images": list(images), "annotations": listed, **({"categories": categories} if names else {})}


def _annotations(node: Node) -> list[dict[str, Any]]:
    if node.codec == "text":
        return [{"caption": node.text}]
    if node.codec == "labels":
        return _segments(node.values(), node.attrs)
    found = node.values()
    return [_box(each) for each in found["boxes"]] if node.codec == "boxes" else [_person(p) for p in found["people"]]


def _box(each: Mapping[str, Any]) -> dict[str, Any]:
    left, top, right, bottom = each["box"]
    box = [left, top, right - left, bottom - top]
    score = {"score": each["score"]} if each.get("score") is not None else {}
    return {
        "label": each["label"],
        "bbox": box,
        "area": box[2] * box[3],
        "iscrowd": 0,
        "colour": each["colour"],
        **score,
    }


def _person(person: Mapping[str, Any]) -> dict[str, Any]:
    points = person["keypoints"]
    found = np.array([point[:2] for point in points if point is not None], float).reshape(-1, 2)
    flat = [part for point in points for part in ((0, 0, 0) if point is None else (point[0], point[1], 2))]
    low, high = (found.min(0), found.max(0)) if len(found) else (np.zeros(2), np.zeros(2))
    box = [*low.tolist(), *(high - low).tolist()]
    return {
        "label": "person", "keypoints": flat, "num_keypoints": len(found), "bbox": box, "area": box[2] * box[3],
        "iscrowd": 0, "scores": [None if point is None else point[2] for point in points],
    }  # fmt: skip


def _segments(labels: NDArray[np.uint8], attrs: Mapping[str, Any]) -> list[dict[str, Any]]:
    names = list(attrs.get("labels") or [])
    found = []
    for label in np.unique(labels).tolist():
        name = names[label] if label < len(names) else f"segment {label}"
        if name in ("", "background"):
            continue
        mask = labels == label
        rows, columns = np.nonzero(mask)
        box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
        found.append({
            "label": name, "segmentation": run_lengths(mask), "area": int(mask.sum()), "iscrowd": 0,
            "bbox": [int(side) for side in box],
        })  # fmt: skip
    return found


def run_lengths(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """COCO's uncompressed run lengths of a mask: columns top to bottom, zeros first."""
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(np.diff(flat)) + 1
    edges = np.concatenate([[0], changes, [len(flat)]])
    counts = np.diff(edges).tolist()
    return {"counts": [0, *counts] if flat[0] else counts, "size": list(mask.shape)}

"""Miniatures of the data sets that the pages name, made of their photographs: below the current folder of a page."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def write_data_sets(folder: Path) -> None:
    """What the pages read besides `photos/`: `edits/`, `viton/`, `coco/`, `depth-maps/` and rows of pictures."""
    photos = sorted((folder / "photos").iterdir())
    _edits(folder / "edits", photos)
    _viton(folder / "viton" / "train", photos)
    _coco(folder / "coco", photos)
    _depth_maps(folder / "depth-maps", photos)
    for name, first in {"rows": 0, "one": 0, "two": 2}.items():
        _rows(folder / name, photos[first : first + 2])
    _styled(folder / "styled", photos)


def _opened(photo: Path) -> Image.Image:
    with Image.open(photo) as picture:
        return picture.convert("RGB")


def _bytes(picture: Image.Image) -> bytes:
    data = io.BytesIO()
    picture.save(data, "PNG")
    return data.getvalue()


def _edits(folder: Path, photos: list[Path]) -> None:
    """A Parquet file with a picture and its mirror image a row."""
    folder.mkdir()
    rows = [
        {"source": {"bytes": _bytes(picture)}, "edited": {"bytes": _bytes(picture.transpose(Image.Transpose(0)))}}
        for picture in map(_opened, photos)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "train-00000.parquet")


def _viton(folder: Path, photos: list[Path]) -> None:
    """Photographs as people, garments, poses and people without a garment, masks, and a label map with a palette."""
    pictures = {"image": "{}.jpg", "cloth": "{}.jpg", "agnostic-v3.2": "{}.jpg", "openpose_img": "{}_rendered.png"}
    for name in (*pictures, "cloth-mask", "image-parse-v3"):
        (folder / name).mkdir(parents=True)
    for photo in photos:
        picture = _opened(photo)
        for name, file in pictures.items():
            picture.save(folder / name / file.format(photo.stem))
        bright = (np.asarray(picture.convert("L")) > 127).astype(np.uint8)
        Image.fromarray(255 * bright).save(folder / "cloth-mask" / f"{photo.stem}.jpg")
        labels = Image.fromarray(bright, "P")
        labels.putpalette([0, 0, 0, 255, 85, 0])
        labels.save(folder / "image-parse-v3" / f"{photo.stem}.png")


def _coco(folder: Path, photos: list[Path]) -> None:
    """One box and two captions a picture."""
    for name in ("annotations", "val"):
        (folder / name).mkdir(parents=True)
    images, boxes, captions = [], [], []
    for number, photo in enumerate(photos):
        picture = _opened(photo)
        name = f"{photo.stem}.jpg"
        picture.save(folder / "val" / name)
        images.append({"id": number, "file_name": name, "width": picture.width, "height": picture.height, "license": 1})
        box = {"bbox": [8, 8, 40, 32], "area": 1280, "iscrowd": 0, "segmentation": [[8, 8, 48, 8, 48, 40, 8, 40]]}
        boxes.append({"id": number, "image_id": number, "category_id": 1, **box})
        captions += [{"id": 2 * number + n, "image_id": number, "caption": f"a photo, {n}"} for n in range(2)]
    shared = {"images": images, "categories": [{"id": 1, "name": "thing"}], "licenses": [{"id": 1, "name": "CC0-1.0"}]}
    for name, listed in {"instances": boxes, "captions": captions}.items():
        (folder / "annotations" / f"{name}_val.json").write_text(json.dumps({**shared, "annotations": listed}))


def _depth_maps(folder: Path, photos: list[Path]) -> None:
    """A 16-bit ramp of the size of each photograph."""
    folder.mkdir()
    for photo in photos:
        picture = _opened(photo)
        ramp = np.linspace(0, 65535, picture.width * picture.height).reshape(picture.height, picture.width)
        Image.fromarray(ramp.astype(np.uint16)).save(folder / f"{photo.stem}.png")


def _rows(folder: Path, photos: list[Path]) -> None:
    """Two rows of edges and photo, of which the last photo is wanted."""
    for number, photo in enumerate(photos, 1):
        row = folder / str(number)
        row.mkdir(parents=True)
        picture = _opened(photo)
        edges = (np.abs(np.gradient(np.asarray(picture.convert("L"), np.float32))[0]) > 8).astype(np.uint8)
        Image.fromarray(255 * edges).save(row / "1-edges.png")
        if number < len(photos):
            picture.save(row / "2-photo.jpg")


def _styled(folder: Path, photos: list[Path]) -> None:
    """An example row of four named cells, and a row that has the middle two."""
    for row, names in {
        "1": ("canny", "reference-a", "reference-b", "image"),
        "2": ("reference-a", "reference-b"),
    }.items():
        (folder / row).mkdir(parents=True)
        for name, photo in zip(names, photos, strict=False):
            _opened(photo).save(folder / row / f"{name}.png")

"""Miniatures of the data sets of the papers, each in the layout that it is published in."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests.support.sources import put

COUNT = 6


def photo(number: int, size: tuple[int, int] = (48, 64)) -> np.ndarray[Any, Any]:
    """A coloured disc on a ramp."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    picture = np.stack([rows * 3, columns * 3, np.full(size, 30 * number % 255)], 2).astype(np.uint8)
    cv2.circle(picture, (size[1] // 2, size[0] // 2), 8 + number, (250, 30 * number % 255, 40), -1)
    return picture


def saved(picture: Any, form: str = "JPEG", **options: Any) -> bytes:
    sink = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(sink, form, **options)
    return sink.getvalue()


def disc(number: int) -> np.ndarray[Any, Any]:
    return cv2.circle(np.zeros((48, 64), np.uint8), (32, 24), 8 + number, 255, -1)


def flat(number: int) -> np.ndarray[Any, Any]:
    return cv2.circle(np.full((48, 64, 3), (120, 120, 120), np.uint8), (32, 24), 10 + number, (4, 200, 3), -1)


def graph200k(root: Path) -> None:
    """`save_to_disk`: 31 columns of pictures, JPEG masks and edges included."""
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    description = {"item": "a disc", "description_0": "on a ramp", "description_1": "again", "category": "shape"}
    rows = []
    for n in range(COUNT):
        photos = ["ref", "target", "normal", "hed", "depth", "openpose", "qwen_2_5_bounding_box", "DepthEdit"]
        styles = product(("InstantStyle", "ReduxStyle"), ("image", "ref"), range(3))
        photos += [f"{family}_{what}_{k}" for family, what, k in styles]
        photos += [f"FillEdit_image_{k}" for k in range(5)]
        row: dict[str, Any] = {name: saved(photo(n + at)) for at, name in enumerate(photos)}
        row |= {name: saved(photo(n).mean(2).astype(np.uint8)) for name in ("hed", "depth")}
        row |= {name: saved(cv2.Canny(disc(n), 100, 200), quality=75) for name in ("canny", "mlsd")}
        row |= {name: saved(flat(n), quality=90) for name in ("uniformer", "sam2_mask", "qwen_2_5_mask")}
        row["foreground"] = saved(disc(n), quality=75)
        if n == 1:
            row["DepthEdit"] = None
        cells = {name: data and {"bytes": data, "path": None} for name, data in row.items()}
        marks = {"compositeStructure": 5, "objectConsistency": 5, "imageQuality": 5}
        meta = {"name": ["x"] * 5, "description": [f"edit {k}" for k in range(5)]}
        rows.append({**cells, "quality_assessment": marks, "description": description, "collection": "collection_1",
                     "FillEdit_meta": meta})  # fmt: skip
    types = dict.fromkeys(cells, image)
    others = pa.Table.from_pylist([{name: row[name] for name in row if name not in types} for row in rows])
    schema = pa.schema([*types.items(), *others.schema])
    (root / "train").mkdir(parents=True)
    file = pa.OSFile(str(root / "train/data-00000-of-00001.arrow"), "wb")
    with file, pa.ipc.new_stream(file, schema) as writer:
        writer.write_table(pa.Table.from_pylist(rows, schema), max_chunksize=4)


def viton_hd(root: Path) -> None:
    palette = [0, 0, 0, 254, 85, 0, 0, 119, 221]
    for n in range(COUNT):
        parse = Image.fromarray((disc(n) // 255).astype(np.uint8)).convert("L")
        parse.putpalette(palette)
        put(root, {f"image/{n:05d}_00.jpg": saved(photo(n)), f"cloth/{n:05d}_00.jpg": saved(photo(n + 3)),
                   f"cloth-mask/{n:05d}_00.jpg": saved(disc(n)), f"agnostic-v3.2/{n:05d}_00.jpg": saved(photo(n + 1)),
                   f"image-parse-v3/{n:05d}_00.png": saved(parse, "PNG"),
                   f"openpose_img/{n:05d}_00_rendered.png": saved(photo(n + 2), "PNG")})  # fmt: skip


def edits(root: Path, columns: Callable[[int], Mapping[str, Any]]) -> None:
    root.mkdir()
    rows = [columns(n) for n in range(COUNT)]
    pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), root / "train-00000-of-00001.parquet")


def magicbrush(root: Path) -> None:
    edits(root, lambda n: {
        "img_id": f"{n}", "turn_index": 1, "source_img": {"bytes": saved(photo(n)), "path": None},
        "mask_img": {"bytes": saved(np.dstack([photo(n), 255 - disc(n)]), "PNG"), "path": None},
        "target_img": {"bytes": saved(photo(n + 2), "PNG"), "path": None}, "instruction": f"make the disc {n} red",
    })  # fmt: skip


def omniedit(root: Path) -> None:
    edits(root, lambda n: {
        "omni_edit_id": f"task_{n}", "task": ("addition", "removal")[n % 2], "o_score": 9.0,
        "src_img": {"bytes": saved(photo(n)), "path": None}, "edited_img": {"bytes": saved(photo(n + 1)), "path": None},
        "edited_prompt_list": [f"add a disc {n}", f"put a disc {n} in"],
    })  # fmt: skip


def dreambooth(root: Path) -> None:
    put(root, {f"{subject}/{view:02d}.jpg": saved(photo(view + at * 7))
               for at, subject in enumerate(("dog", "clock", "vase")) for view in range(4)})  # fmt: skip


def look_at(angle: float) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """PyTorch3D's R and T of a camera two units from the origin, which it looks at."""
    forward = -np.array([np.sin(angle), 0.2, np.cos(angle)])
    forward /= np.linalg.norm(forward)
    left = np.cross([0.0, 1.0, 0.0], forward)
    left /= np.linalg.norm(left)
    rotation = np.stack([left, np.cross(forward, left), forward], axis=1)
    return rotation, -rotation.T @ (-2 * forward)


def multiview(root: Path) -> None:
    frames = []
    for at, sequence in enumerate(("110_1", "110_2", "245_7")):
        for view in range(4):
            name = f"apple/{sequence}/{{}}/frame{view:06d}.{{}}"
            put(root, {name.format("images", "jpg"): saved(photo(view + at * 7)),
                       name.format("masks", "png"): saved(disc(view), "PNG")})  # fmt: skip
            rotation, shift = look_at(0.4 * view)
            frames.append({
                "sequence_name": sequence, "frame_number": view,
                "image": {"path": name.format("images", "jpg"), "size": [48, 64]},
                "mask": {"path": name.format("masks", "png"), "mass": 200.0},
                "viewpoint": {"R": rotation.tolist(), "T": shift.tolist(), "focal_length": [2.0, 2.5],
                              "principal_point": [0.0, 0.0], "intrinsics_format": "ndc_norm_image_bounds"},
            })  # fmt: skip
    put(root, {"apple/frame_annotations.jgz": gzip.compress(json.dumps(frames).encode())})


def id_sets(root: Path) -> None:
    put(root, {f"p{at}/{view}.jpg": saved(photo(view + at * 7)) for at in range(3) for view in range(2 + at)})
    put(root, {"p0/0.txt": b"a person on a ramp", "p2/1.txt": b"a person again"})


def photodoodle(root: Path) -> None:
    lines = [{"source": f"{n}_a.png", "target": f"{n}_b.jpg", "text": f"add a halo to disc {n} by sksmagiceffects"}
             for n in range(COUNT)]  # fmt: skip
    put(root, {f"{n}_a.png": saved(photo(n), "PNG") for n in range(COUNT)})
    put(root, {f"{n}_b.jpg": saved(photo(n + 3)) for n in range(COUNT)})
    put(root, {"meta.jsonl": "\n".join(map(json.dumps, lines)).encode()})


def hypersim(root: Path) -> None:
    distance = np.where(disc(5) > 0, 1500, 6000).astype(np.uint16)
    distance[:4] = 0
    for scene, frame in product(("ai_001_001", "ai_001_002", "ai_003_010"), range(2)):
        name = f"{scene}/images/scene_cam_00_{{}}/frame.{frame:04d}.{{}}"
        put(root, {name.format("final_preview", "tonemap.jpg"): saved(photo(frame + 3 * int(scene[-1]))),
                   name.format("geometry_png", "depth_meters.png"): saved(distance, "PNG")})  # fmt: skip


def dreambench(root: Path) -> None:
    """Three subjects before two prompts each."""
    lines = ["id,reference,view,subject,prompt"]
    for at, subject in enumerate(("dog", "clock", "vase")):
        put(root, {f"{subject}/{view:02d}.jpg": saved(photo(view + at * 7)) for view in range(2)})
        lines += [f"{subject}-{n},{subject}/00.jpg,{subject}/01.jpg,{subject},a {subject} {where}"
                  for n, where in enumerate(("in the snow", "on a beach"))]  # fmt: skip
    put(root, {"prompts.csv": "\n".join(lines).encode()})


def nyu_depth(root: Path) -> None:
    distance = np.where(disc(5) > 0, 1500, 6000).astype(np.uint16)
    for (at, scene), frame in product(enumerate(("bath_0", "bed_0", "study_0")), range(2)):
        put(root, {f"{scene}/rgb_{frame:05d}.jpg": saved(photo(frame + 7 * at)),
                   f"{scene}/sync_depth_{frame:05d}.png": saved(distance, "PNG")})  # fmt: skip


def coco(root: Path) -> None:
    people = [40, 10, 2] + [0, 0, 0] * 4 + [20, 20, 2, 44, 20, 2] + [0, 0, 0] * 10
    images = [{"id": n, "file_name": f"{n:012d}.jpg", "width": 64, "height": 48} for n in range(COUNT)]
    box = {"category_id": 1, "bbox": [10, 10, 30, 20], "segmentation": [[10, 10, 40, 10, 40, 30, 10, 30]], "iscrowd": 0}
    objects = [{**box, "id": n, "image_id": n, "keypoints": people} for n in range(COUNT)]
    captions = [{"id": n * 9 + k, "image_id": n, "caption": f"a disc, {k}"} for n in range(COUNT) for k in range(5)]
    for name, listed in {"person_keypoints": objects, "captions": captions}.items():
        said = {"images": images, "annotations": listed, "categories": [{"id": 1, "name": "person"}]}
        put(root, {f"annotations/{name}_train2017.json": json.dumps(said).encode()})
    put(root, {f"train2017/{n:012d}.jpg": saved(photo(n)) for n in range(COUNT)})


SETS: Mapping[str, Callable[[Path], None]] = {
    "graph200k": graph200k, "viton_hd": viton_hd, "magicbrush": magicbrush, "omniedit": omniedit,
    "dreambooth": dreambooth, "multiview": multiview, "coco": coco, "id_sets": id_sets, "photodoodle": photodoodle,
    "hypersim": hypersim, "dreambench": dreambench, "nyu_depth": nyu_depth,
}  # fmt: skip
FILES = {"photodoodle": "meta.jsonl", "dreambench": "prompts.csv"}
"""What of a set is named, where it is not the folder."""

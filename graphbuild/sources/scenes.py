"""Pictures of scenes with the cameras that took them."""

from __future__ import annotations

import gzip
import json
import math
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from graphbuild.errors import UnusableImage
from graphbuild.hashing import digest_of
from graphbuild.images.cameras import drawn
from graphbuild.images.codecs import check_image
from graphbuild.kinds.registry import Kind
from graphbuild.sources.base import Entry, Source, SourceItem, location
from graphbuild.sources.places import Place, nbytes_of

TRANSFORMS, CO3D = "transforms.json", "frame_annotations.jgz"
"""File names: of a scene, as nerfstudio, DL3DV and renders of Objaverse have it; of a category of CO3D."""

CAMERA = Kind(name="camera", family="text", codec="json", description="where the image was taken from, and the lens")
RAYS = Kind(name="rays", family="condition", codec="rays", description="viewing rays, drawn as their directions")
RAY_DIRECTIONS = Kind(
    name="ray_directions", family="condition", codec="png", description="directions of viewing rays as colours"
)
RAY_MOMENTS = Kind(
    name="ray_moments", family="condition", codec="png", description="moments of viewing rays about the scene's centre"
)

_FLIP = np.diag([1.0, -1.0, -1.0])  # OpenGL's camera looks along -z with y up
_MIRROR = np.diag([-1.0, -1.0, 1.0])  # PyTorch3D's has x to the left and y up


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One picture: its file and mask below the root, its scene, and its camera. Lengths are shares of the picture's
    width and height."""

    file: str
    scene: str
    focal: tuple[float, float]
    centre: tuple[float, float]
    rotation: NDArray[np.float64]
    position: NDArray[np.float64]
    mask: str | None = None
    category: str | None = None


@dataclass(frozen=True, kw_only=True)
class Scenes(Source):
    """Every frame with a camera in the `transforms.json` of a scene (nerfstudio, DL3DV, renders of Objaverse) or the
    `frame_annotations.jgz` of a category (CO3D), at any depth below `path`. Pictures of a scene are a group.

    `camera` is a JSON document, see `graphbuild.images.cameras`; `rays` is the same as a cell that shows its viewing
    rays; `ray_directions` and `ray_moments` are pictures of their Plücker coordinates, 128 pixels long. Scenes have no
    common unit: each is moved and scaled so that its cameras lie in a ball of radius 1 around their mean.
    `foreground_mask` is the mask that a frame names.

    Args:
        path: a folder or an address.
        images: the folder of pictures instead of the one that frames name, such as `images_4`.
        dataset, revision: the name and version of the data set, recorded with everything that is made from it.
        licence, attribution: of all pictures.
    """

    name: ClassVar[str] = "scenes"
    makes: ClassVar[tuple[str | Kind, ...]] = ("image", CAMERA, RAYS, RAY_DIRECTIONS, RAY_MOMENTS, "foreground_mask")
    path: Any = location()
    images: str | None = None
    dataset: str | None = None
    revision: str | None = None
    licence: str | None = None
    attribution: str | None = None

    def entries(self) -> Sequence[Entry]:
        """Every frame, with a digest of its camera.

        Raises:
            ValueError: no such files, or one is not as it should be.
        """
        place = self._place()
        stamps = dict(place.listing([""]))
        found = self._frames(place)
        if not found:
            raise ValueError(f"source 'scenes': no {TRANSFORMS} or {CO3D} under {self.path}; give --path")
        said = {key: digest_of([frame.focal, frame.centre, camera]) for key, (frame, camera) in found.items()}
        files = {key: stamps.get(frame.file, "missing") for key, (frame, _) in found.items()}
        return [Entry(key, f"{files[key]}-{said[key]}", nbytes=nbytes_of(files[key])) for key in sorted(found)]

    def read(self, keys: Sequence[str]) -> Iterator[SourceItem]:
        """The frames, in order."""
        place = self._place()
        found = self._frames(place)
        for key in keys:
            frame, pose = found[key]
            data = place.read(frame.file)
            nodes: dict[str, Any] = {"image": data}
            if isinstance(data, bytes) and (size := _size(data)) is not None:
                camera = nodes["camera"] = nodes["rays"] = _document(frame, pose, *size)
                nodes |= {"ray_directions": drawn("direction", camera), "ray_moments": drawn("moment", camera)}
            if frame.mask is not None:
                nodes["foreground_mask"] = place.read(frame.mask)
            yield SourceItem(
                key=key, uri=key, original=data if isinstance(data, bytes) else None, nodes=nodes, group=frame.scene,
                category=frame.category, caption=f"a photo of a {frame.category}" if frame.category else None,
                licence=self.licence, attribution=self.attribution,
            )  # fmt: skip

    def _place(self) -> Place:
        return Place.at(self.path, self.name)

    def _frames(self, place: Place) -> Mapping[str, tuple[Frame, list[list[float]]]]:
        """Key -> the frame, and its pose in its scene."""
        found: dict[str, tuple[Frame, list[list[float]]]] = {}
        for file, stamp in place.listing([TRANSFORMS, CO3D]):
            if posixpath.basename(file) not in (TRANSFORMS, CO3D):
                continue
            for frame, pose in _posed(str(self.path), file, stamp, self.images):
                found[frame.file] = (frame, pose)
        return found


def _document(frame: Frame, pose: list[list[float]], height: int, width: int) -> dict[str, Any]:
    return {
        "width": width, "height": height, "pose": pose,
        "focal": [frame.focal[0] * width, frame.focal[1] * height],
        "centre": [frame.centre[0] * width, frame.centre[1] * height],
    }  # fmt: skip


def _size(data: bytes) -> tuple[int, int] | None:
    try:
        height, width = check_image(data)[1].shape[:2]
        return height, width
    except UnusableImage:
        return None  # the picture's row says so


@lru_cache(maxsize=64)
def _posed(root: str, file: str, stamp: str, images: str | None) -> list[tuple[Frame, list[list[float]]]]:
    # Remembered, because sources are read unit by unit; another stamp is another file.
    place = Place.at(root, Scenes.name)
    try:
        with place.open(file) as opened:
            data = opened.read()
        is_scene = posixpath.basename(file) == TRANSFORMS
        document = json.loads(data if is_scene else gzip.decompress(data))
        frames = list(_transforms(document, file, images) if is_scene else _co3d(document, file))
    except (KeyError, TypeError, ValueError, OSError, EOFError) as error:
        raise ValueError(
            f"source 'scenes': {file} is not as it should be ({type(error).__name__}: {error}); fetch it again"
        ) from error
    scenes: dict[str, list[Frame]] = {}
    for frame in frames:
        scenes.setdefault(frame.scene, []).append(frame)
    return [posed for scene in scenes.values() for posed in _in_a_ball(scene)]


def _in_a_ball(frames: Sequence[Frame]) -> Iterator[tuple[Frame, list[list[float]]]]:
    """Each frame with its pose, in units in which the cameras lie in a ball of radius 1 around their mean."""
    positions = np.array([frame.position for frame in frames])
    moved = positions - positions.mean(0)
    radius = float(np.linalg.norm(moved, axis=1).max()) or 1.0
    for frame, position in zip(frames, moved / radius, strict=True):
        yield frame, np.round(np.hstack([frame.rotation, position[:, None]]), 6).tolist()


def _transforms(document: Mapping[str, Any], file: str, images: str | None) -> Iterator[Frame]:
    """Frames of nerfstudio's format, whose poses are 4 x 4 from an OpenGL camera to the world."""
    folder = posixpath.dirname(file)
    for said in document["frames"]:
        lens = {**document, **said}
        width, height = float(lens.get("w", 1)), float(lens.get("h", 1))
        if "fl_x" in lens:
            focal = (lens["fl_x"] / width, lens.get("fl_y", lens["fl_x"]) / height)
            centre = (lens.get("cx", width / 2) / width, lens.get("cy", height / 2) / height)
        else:  # a render: square pixels, and where it has no size a square picture
            across = 0.5 / math.tan(lens["camera_angle_x"] / 2)
            focal, centre = (across, across * width / height), (0.5, 0.5)
        matrix = np.array(said["transform_matrix"], float).reshape(-1, 4)
        yield Frame(
            file=_beside(folder, said["file_path"], images), scene=folder or ".", focal=focal, centre=centre,
            rotation=matrix[:3, :3] @ _FLIP, position=matrix[:3, 3],
            mask=_beside(folder, said["mask_path"], None) if said.get("mask_path") else None,
        )  # fmt: skip


def _beside(folder: str, name: str, images: str | None) -> str:
    parts = posixpath.normpath(name).split("/")
    if images is not None:
        parts = [images, parts[-1]]
    named = posixpath.join(folder, *parts)
    return named if posixpath.splitext(named)[1] else f"{named}.png"


def _co3d(document: Sequence[Mapping[str, Any]], file: str) -> Iterator[Frame]:
    """Frames of CO3D, whose views are PyTorch3D's: x_camera = x_world R + T, and normalised device coordinates."""
    root = posixpath.dirname(posixpath.dirname(file))
    for said in document:
        view, (height, width) = said["viewpoint"], said["image"]["size"]
        focal, centre = np.array(view["focal_length"], float), np.array(view["principal_point"], float)
        sides = np.array([width, height], float)
        if view.get("intrinsics_format", "ndc_norm_image_bounds") == "ndc_isotropic":
            focal, centre = focal * min(sides) / sides, centre * min(sides) / sides
        rotation, shift = np.array(view["R"], float).reshape(3, 3), np.array(view["T"], float).reshape(3)
        yield Frame(
            file=posixpath.join(root, said["image"]["path"]),
            scene=f"{posixpath.basename(posixpath.dirname(file))}/{said['sequence_name']}",
            focal=(float(focal[0]) / 2, float(focal[1]) / 2),
            centre=(0.5 - float(centre[0]) / 2, 0.5 - float(centre[1]) / 2),
            rotation=rotation @ _MIRROR, position=-rotation @ shift,
            mask=posixpath.join(root, said["mask"]["path"]) if said.get("mask") else None,
            category=posixpath.basename(posixpath.dirname(file)),
        )  # fmt: skip

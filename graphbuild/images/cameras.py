"""Cameras, and the viewing rays of their pixels in Plücker coordinates (o x d, d), as OneDiffusion takes camera poses
(D. H. Le et al., arXiv 2411.16318).

A camera is a JSON document: `width` and `height` of its picture in pixels; `focal` [x, y] and `centre` [x, y], the
focal length and the principal point, in pixels; `pose`, 3 x 4 from the camera (x right, y down, z forward) to the
scene.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

FARTHEST = 2.0
"""Largest distance of two cameras of a scene that is scaled to have its cameras in a ball of radius 1."""

_LONGEST = 128  # pixels of a picture of rays, which are smooth: models take them at an eighth of the picture's size


def plucker(camera: Mapping[str, Any], height: int, width: int) -> NDArray[np.float32]:
    """The ray of each of height x width evenly spaced points of a picture: float32, height x width x 6, the moment
    o x d in units of the scene, then the direction d, of length 1.

    Raises:
        ValueError: a value is absent, or no number of its shape.
    """
    try:
        scale = np.array([camera["width"] / width, camera["height"] / height])
        focal, centre = np.array(camera["focal"], float).reshape(2), np.array(camera["centre"], float).reshape(2)
        pose = np.array(camera["pose"], float).reshape(3, 4)
    except (KeyError, TypeError, ValueError) as error:
        allowed = "allowed: numbers for width, height, focal, centre, pose"
        raise ValueError(f"camera: {type(error).__name__}: {error}; {allowed}") from error
    columns, rows = np.meshgrid((np.arange(width) + 0.5) * scale[0], (np.arange(height) + 0.5) * scale[1])
    seen = np.stack([(columns - centre[0]) / focal[0], (rows - centre[1]) / focal[1], np.ones_like(rows)], axis=-1)
    direction = seen @ pose[:, :3].T
    direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
    return np.concatenate([np.cross(pose[:, 3], direction), direction], axis=-1).astype(np.float32)


def middle(camera: Mapping[str, Any], width: float, height: float) -> dict[str, Any]:
    """The camera of the part of its picture that lies in the middle and has this size, in pixels."""
    across, down = camera["centre"]
    centre = [across - (camera["width"] - width) / 2, down - (camera["height"] - height) / 2]
    return {**camera, "width": width, "height": height, "centre": centre}


def check_camera(camera: Mapping[str, Any]) -> None:
    """Refuse a document that is no camera.

    Raises:
        ValueError: as `plucker`.
    """
    for side in ("width", "height"):
        if not (isinstance(value := camera.get(side), int) and value > 0):
            raise ValueError(f"camera: {side}: {value!r}; allowed: a whole number of pixels")
    plucker(camera, 1, 1)


def drawn(part: Literal["moment", "direction"], camera: Mapping[str, Any]) -> NDArray[np.uint8]:
    """Three coordinates of the rays as a picture, of the shape of the camera's and at most 128 pixels long: 0 is
    mid-grey, the largest value of a direction (1) or a moment (`FARTHEST`) is 255.

    Raises:
        ValueError: as `plucker`.
    """
    shrunk = min(1.0, _LONGEST / max(camera["width"], camera["height"]))
    height, width = (max(1, round(camera[side] * shrunk)) for side in ("height", "width"))
    rays = plucker(camera, height, width)
    values = rays[..., :3] / FARTHEST if part == "moment" else rays[..., 3:]
    return np.clip(np.round(127.5 + 127.5 * values), 0, 255).astype(np.uint8)


def draw_rays(camera: Mapping[str, Any]) -> NDArray[np.uint8]:
    """The directions of the rays as a picture of the camera's size, height x width x 3; see `drawn`."""
    import cv2

    small, size = drawn("direction", camera), (camera["width"], camera["height"])
    return cv2.resize(small, size, interpolation=cv2.INTER_LINEAR)  # type: ignore[return-value]

"""Cells that show where a picture was taken from: the viewing rays of the part of it that its row shows.

They are stored as cameras (codec `rays`) and drawn as pictures. A model that knows rays takes all six coordinates, at
the resolution of its latents (OneDiffusion, arXiv 2411.16318).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from graphbuild.images.cameras import middle, plucker
from graphbuild.tasks.grid import GridTask

CODEC = "rays"
LATENT = 8
"""Pixels along the side of a point that has a ray."""


def ray_column(task: GridTask) -> int | None:
    """The column that shows rays; None if none does.

    Raises:
        ValueError: several do.
    """
    found = [column for column, kind in enumerate(task.kinds) if kind.codec == CODEC]
    if len(found) > 1:
        raise ValueError(f"path {task.walk.path.name!r}: {len(found)} cells of rays; allowed: one, that of the picture")
    return found[0] if found else None


def rays_of(task: GridTask, row: int, column: int) -> NDArray[np.float32]:
    """The rays of one cell, 6 x height/8 x width/8: moment, then direction.

    Raises:
        ValueError: the cell is a picture of rays, whose camera nobody knows.
    """
    node, frame = task.node(row, column), task.frames[row]
    if node.codec != CODEC:
        name = task.kinds[column].name
        raise ValueError(f"row {row}, {name}: a picture; allowed: rays of a graph, where their cameras are")
    camera = node.values()
    shown = camera if frame.part is None else middle(camera, *frame.part((camera["width"], camera["height"])))
    width, height = frame.size
    return np.moveaxis(plucker(shown, height // LATENT, width // LATENT), -1, 0)

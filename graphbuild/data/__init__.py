"""Grid tasks for torch: datasets, the batch they make, and positions to resume at. Needs torch."""

from __future__ import annotations

from graphbuild.data.batch import GridBatch, at_inference, collate
from graphbuild.data.dataset import GridTaskList, GridTasks, position
from graphbuild.data.sample import GridSample

__all__ = ["GridBatch", "GridSample", "GridTaskList", "GridTasks", "at_inference", "collate", "position"]

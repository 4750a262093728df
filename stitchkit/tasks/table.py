"""The tasks of dense prediction by name."""

from __future__ import annotations

from stitchkit.tasks.depth import Depth
from stitchkit.tasks.segmentation import Segmentation
from stitchkit.tasks.task import DenseTask

TASKS: dict[str, DenseTask] = {"segmentation": Segmentation(), "depth": Depth()}

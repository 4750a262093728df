"""The truth at each pixel that a task learns: how its files are read, and what augmentation does to images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torchvision.transforms import v2

from stitchkit.data.dense.maps import UNKNOWN_DEPTH, Content, read_depth, read_mask
from stitchkit.settings.tasks import NOT_KNOWN


@dataclass(frozen=True)
class Targets:
    """The targets `[H, W]` of a task.

    Attributes:
        read: A target, from the name and the content of its file.
        dtype: Of a target as a tensor.
        unknown: The value of pixels that do not count.
        distort: The random change of an image's colours in training.
        is_balanced: Whether crops that one class dominates are drawn again, which needs class numbers.
    """

    read: Callable[[str, Content], NDArray[Any]]
    dtype: torch.dtype
    unknown: float
    distort: v2.Transform
    is_balanced: bool


_STEPS: tuple[dict[str, float], ...] = (
    {"brightness": 32 / 255}, {"contrast": 0.5}, {"saturation": 0.5}, {"hue": 0.1},
)  # fmt: skip
TARGETS = {
    "segmentation": Targets(
        read_mask, torch.int64, NOT_KNOWN, is_balanced=True,
        distort=v2.Compose([v2.RandomApply([v2.ColorJitter(**step)], p=0.5) for step in _STEPS]),
    ),
    "depth": Targets(
        read_depth, torch.float32, UNKNOWN_DEPTH, is_balanced=False,
        distort=v2.RandomApply([v2.ColorJitter(brightness=0.25, contrast=0.1, saturation=0.1)], p=0.5),
    ),
}  # fmt: skip
"""The targets of each task."""

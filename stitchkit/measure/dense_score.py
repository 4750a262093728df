"""Scores of dense predictions as functions of sums over images, so that a bootstrap needs only each image's sums."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt

from stitchkit.errors import InputError, unknown
from stitchkit.measure.formulas import Floats

_MOST_CLASSES = 255  # the class 255 of a mask is a pixel that does not count


@dataclass(frozen=True)
class SegmentationScore:
    """Mean IoU over the classes that occur, and pixel accuracy, in percent, over all known pixels of all images.

    An image's sums are its correct, predicted and true pixels, each for all classes.
    """

    num_classes: int
    task: ClassVar[str] = "segmentation"
    metric: ClassVar[str] = "miou"
    kind: ClassVar[type[np.generic]] = np.int32

    def __post_init__(self) -> None:
        if not 1 <= self.num_classes <= _MOST_CLASSES:
            raise InputError(f"segmentation has {self.num_classes} classes; masks can have 1 to {_MOST_CLASSES}")

    @property
    def own(self) -> int:
        """Found and predicted pixels of each class."""
        return 2 * self.num_classes

    @property
    def truth(self) -> int:
        """True pixels of each class."""
        return self.num_classes

    def figures(self, sums: npt.NDArray[Any]) -> dict[str, Floats]:
        """`miou` and `pixel_acc`, `[...]`, of sums `[..., 3 * num_classes]`; 0 without any pixel."""
        correct, predicted, true = np.split(np.asarray(sums, float), 3, axis=-1)
        union = predicted + true - correct
        ious, occurring = correct / np.maximum(union, 1), (union > 0).sum(axis=-1)
        miou = 100 * ious.sum(axis=-1) / np.maximum(occurring, 1)
        return {"miou": miou, "pixel_acc": 100 * correct.sum(axis=-1) / np.maximum(true.sum(axis=-1), 1)}


@dataclass(frozen=True)
class DepthScore:
    """Relative error, RMSE in metres, and share of pixels within a factor of 1.25 of the truth, in percent.

    Each is the mean of the images' figures, not the figure of all pixels, so a sparsely measured image counts fully.

    Source: the Monocular-Depth-Estimation-Toolbox, which SN-Netv2 uses: `pre_eval_to_metrics` also averages over
        images, skips those without a valid pixel, and calls the share `a1`.
    """

    task: ClassVar[str] = "depth"
    metric: ClassVar[str] = "delta1"
    kind: ClassVar[type[np.generic]] = np.float64

    @property
    def own(self) -> int:
        """The three figures of an image."""
        return 3

    @property
    def truth(self) -> int:
        """Whether the image counts."""
        return 1

    def figures(self, sums: npt.NDArray[Any]) -> dict[str, Floats]:
        """`abs_rel`, `rmse` and `delta1`, `[...]`, of sums `[..., 4]`; 0 without any image."""
        sums = np.asarray(sums, float)
        abs_rel, rmse, near = np.moveaxis(sums[..., :3] / np.maximum(sums[..., 3:], 1), -1, 0)
        return {"abs_rel": abs_rel, "rmse": rmse, "delta1": 100 * near}


DenseScore: TypeAlias = SegmentationScore | DepthScore
"""The sums over a task's images, their `figures` and the `metric` that compares networks.

An image's sums are `own` numbers of a `kind`, which depend on the prediction, then those of its `truth`, which all
networks share: zeros if the image does not count.
"""


def about(score: DenseScore) -> dict[str, object]:
    """What a file must say of a score."""
    return {"task": score.task} | ({"num_classes": score.num_classes} if isinstance(score, SegmentationScore) else {})


def score_of(content: Mapping[str, Any]) -> DenseScore:
    """The score that a file describes."""
    if content["task"] == SegmentationScore.task:
        return SegmentationScore(int(content["num_classes"]))
    if content["task"] == DepthScore.task:
        return DepthScore()
    raise unknown("task", content["task"], (SegmentationScore.task, DepthScore.task))

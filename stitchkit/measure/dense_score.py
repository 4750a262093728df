"""What dense predictions are worth: figures of sums over images, of which every image gives its own.

Sums of images add up, and a figure is a function of their total. A bootstrap therefore needs the sums of each image
alone, and no prediction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from stitchkit.errors import InputError, unknown
from stitchkit.measure.formulas import Floats

_MOST_CLASSES = 255  # the class 255 of a mask is a pixel that does not count


class DenseScore(Protocol):
    """What is summed over the images of a task, and the figures of the sums.

    The sums of an image are its own numbers, which depend on the prediction, and then those of its truth, which are the
    same for all networks, and zeros if the image does not count.
    """

    task: ClassVar[str]
    metric: ClassVar[str]
    """The figure by which networks are compared."""
    kind: ClassVar[type[np.generic]]
    """Of each number, in files."""

    @property
    def own(self) -> int:
        """How many numbers of an image depend on the prediction."""

    @property
    def truth(self) -> int:
        """How many are of the truth."""

    def figures(self, sums: npt.NDArray[Any]) -> dict[str, Floats]:
        """The figures `[...]` of sums over images `[..., own + truth]`."""


@dataclass(frozen=True)
class SegmentationScore:
    """Mean IoU and pixel accuracy, both in percent, over all known pixels of all images.

    The sums of an image are its pixels found, predicted and true, each of all classes. The mean IoU is over the classes
    that occur in truth or prediction.
    """

    num_classes: int
    task: ClassVar[str] = "segmentation"
    metric: ClassVar[str] = "miou"
    kind: ClassVar[type[np.generic]] = np.int32

    def __post_init__(self) -> None:
        if not 1 <= self.num_classes <= _MOST_CLASSES:
            raise InputError(
                f"segmentation has {self.num_classes} classes; masks can tell 1 to {_MOST_CLASSES} apart; join some"
            )

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
        found, predicted, true = np.split(np.asarray(sums, float), 3, axis=-1)
        union = predicted + true - found
        ious, occurring = found / np.maximum(union, 1), (union > 0).sum(axis=-1)
        miou = 100 * ious.sum(axis=-1) / np.maximum(occurring, 1)
        return {"miou": miou, "pixel_acc": 100 * found.sum(axis=-1) / np.maximum(true.sum(axis=-1), 1)}


@dataclass(frozen=True)
class DepthScore:
    """Relative error, RMSE in metres, and share of pixels within a factor of 1.25 of the truth, in percent.

    Each is the mean over images of the figure of an image, not the figure of all pixels together: an image of which a
    sensor saw half counts as much as any other. The sums of an image are hence its figures, and 1.

    Source: Monocular-Depth-Estimation-Toolbox, by which SN-Netv2 is published: `pre_eval_to_metrics` is the mean over
        images, leaves out those without a valid pixel, and calls the share `a1`.
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


def about(score: DenseScore) -> dict[str, object]:
    """What a file must say of a score."""
    return {"task": score.task} | ({"num_classes": score.num_classes} if isinstance(score, SegmentationScore) else {})


def score_of(said: Mapping[str, Any]) -> DenseScore:
    """The score of which a file says this."""
    if said["task"] == SegmentationScore.task:
        return SegmentationScore(int(said["num_classes"]))
    if said["task"] == DepthScore.task:
        return DepthScore()
    raise unknown("task", said["task"], (SegmentationScore.task, DepthScore.task))

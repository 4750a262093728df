"""Scores of predictions as functions of sums over images, so that what is kept of each image gives all figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from stitchkit.errors import InputError, unknown
from stitchkit.measure.formulas import Floats

_MOST_CLASSES = 255  # the class 255 of a mask is a pixel that does not count


@dataclass(frozen=True)
class AnswerScore:
    """Right answers in percent: the image's label, or with the metric `agree` what its end anchor answers.

    An image's sum is whether the answer is right, and its truth the label: -1 if it does not count, 0 with `agree`.
    """

    metric: Literal["acc1", "agree"] = "acc1"
    file: ClassVar[str] = "hits"
    dtype: ClassVar[type[np.generic]] = np.bool_
    own: ClassVar[int] = 1
    truth: ClassVar[int] = 1

    def known(self, truth: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """What all networks' sums have of the truth of images, `[images, 1]`: whether they count."""
        return truth >= 0

    def other_truth(self, truth: npt.NDArray[Any], before: npt.NDArray[Any]) -> str:
        """How the truth of an image differs from an earlier one, in words."""
        return f"label {truth[0]} in this evaluation, and {before[0]} in the earlier one"

    def about(self) -> dict[str, object]:
        """What a file says of the score."""
        return {} if self.metric == "acc1" else {"metric": self.metric}

    def figures(self, sums: npt.NDArray[Any]) -> dict[str, Floats]:
        """The metric, `[...]`, of the right answers and the images `[..., 2]`; 0 without any image."""
        right, images = np.moveaxis(np.asarray(sums, float), -1, 0)
        return {self.metric: 100 * right / np.maximum(images, 1)}


class _Sums:
    """A score whose images have sums of pixels; those of the truth are zeros if an image does not count."""

    file: ClassVar[str] = "sums"

    def known(self, truth: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """What all networks' sums have of the truth of images, `[images, truth]`: all of it."""
        return truth

    def other_truth(self, *_: object) -> str:
        """How the truth of an image differs from an earlier one, in words."""
        return "another truth than in the earlier one"


@dataclass(frozen=True)
class SegmentationScore(_Sums):
    """Mean IoU over the classes that occur, and pixel accuracy, in percent, over all known pixels of all images.

    An image's sums are its correct, predicted and true pixels, each for all classes.
    """

    num_classes: int
    task: ClassVar[str] = "segmentation"
    metric: ClassVar[str] = "miou"
    dtype: ClassVar[type[np.generic]] = np.int32

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

    def about(self) -> dict[str, object]:
        """What a file says of the score."""
        return {"task": self.task, "num_classes": self.num_classes}

    def figures(self, sums: npt.NDArray[Any]) -> dict[str, Floats]:
        """`miou` and `pixel_acc`, `[...]`, of sums `[..., 3 * num_classes]`; 0 without any pixel."""
        correct, predicted, true = np.split(np.asarray(sums, float), 3, axis=-1)
        union = predicted + true - correct
        ious, occurring = correct / np.maximum(union, 1), (union > 0).sum(axis=-1)
        miou = 100 * ious.sum(axis=-1) / np.maximum(occurring, 1)
        return {"miou": miou, "pixel_acc": 100 * correct.sum(axis=-1) / np.maximum(true.sum(axis=-1), 1)}


@dataclass(frozen=True)
class DepthScore(_Sums):
    """Relative error, RMSE in metres, and share of pixels within a factor of 1.25 of the truth, in percent.

    Each is the mean of the images' figures, not the figure of all pixels, so a sparsely measured image counts fully.

    Source: the Monocular-Depth-Estimation-Toolbox, which SN-Netv2 uses: `pre_eval_to_metrics` also averages over
        images, skips those without a valid pixel, and calls the share `a1`.
    """

    task: ClassVar[str] = "depth"
    metric: ClassVar[str] = "delta1"
    dtype: ClassVar[type[np.generic]] = np.float64
    own: ClassVar[int] = 3
    """The three figures of an image."""
    truth: ClassVar[int] = 1
    """Whether the image counts."""

    def about(self) -> dict[str, object]:
        """What a file says of the score."""
        return {"task": self.task}

    def figures(self, sums: npt.NDArray[Any]) -> dict[str, Floats]:
        """`abs_rel`, `rmse` and `delta1`, `[...]`, of sums `[..., 4]`; 0 without any image."""
        sums = np.asarray(sums, float)
        abs_rel, rmse, near = np.moveaxis(sums[..., :3] / np.maximum(sums[..., 3:], 1), -1, 0)
        return {"abs_rel": abs_rel, "rmse": rmse, "delta1": 100 * near}


DenseScore: TypeAlias = SegmentationScore | DepthScore
"""The sums over a task's images, their `figures` and the `metric` that compares networks.

An image's sums are `own` numbers of a `dtype`, which depend on the prediction, then those of its `truth`, which all
networks share: zeros if the image does not count.
"""
Score: TypeAlias = AnswerScore | DenseScore
"""What is kept of each image: `own` numbers of each network and those of its `truth`, in the `file` beside a ledger."""
FILES = dict.fromkeys(("acc1", "agree"), AnswerScore.file) | dict.fromkeys(("miou", "delta1"), _Sums.file)
"""The ending of the file that compares networks by a metric."""


def score_of(content: Mapping[str, Any], file: str) -> Score:
    """The score that a file with this ending describes."""
    if file == AnswerScore.file:
        if (metric := content.get("metric", "acc1")) not in ("acc1", "agree"):
            raise ValueError("it is of another format")
        return AnswerScore(metric)
    if content["task"] == SegmentationScore.task:
        return SegmentationScore(int(content["num_classes"]))
    if content["task"] == DepthScore.task:
        return DepthScore()
    raise unknown("task", content["task"], (SegmentationScore.task, DepthScore.task))

"""Scores of predictions as functions of sums over images, so that what is kept of each image gives all figures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt

from stitchkit.errors import InputError, unknown
from stitchkit.measure.formulas import Bits, Floats

Array: TypeAlias = npt.NDArray[Any]
_MOST_CLASSES = 255  # the class 255 of a mask is a pixel that does not count


class Score(ABC):
    """What is kept of each image, and the figures of it.

    Attributes:
        metric: The figure that compares networks.
        file: The ending of the file beside a ledger.
        dtype: Of the numbers that depend on the network.
    """

    metric: ClassVar[str]
    file: ClassVar[str]
    dtype: ClassVar[type[np.generic]]

    @property
    def totals(self) -> int:
        """How many numbers are summed over batches."""
        return 0

    @property
    @abstractmethod
    def own(self) -> int:
        """How many numbers of an image depend on the network."""

    @property
    @abstractmethod
    def truth(self) -> int:
        """How many numbers of an image all networks share."""

    @abstractmethod
    def about(self) -> dict[str, object]:
        """What a file says of the score."""

    @abstractmethod
    def counts(self, truth: Array) -> Bits:
        """Whether images count, `[images]`, by their truth."""

    @abstractmethod
    def other_truth(self, truth: Array, before: Array) -> str:
        """How the truth of an image differs from an earlier one, in words."""

    @abstractmethod
    def row(self, own: Array, truth: Array, seen: Bits, totals: Floats | None) -> dict[str, float]:
        """The figures of a network, in the order of a row in a ledger; arguments as in `PerImage`."""

    def nothing(self, images: int) -> str:  # noqa: ARG002
        """Why so many images give no figures, in words."""
        return "there is no image to evaluate on; check the validation set"


class AnswerScore(Score):
    """Whether each answer is right; the truth of an image is its label, or -1 if it does not count."""

    file: ClassVar[str] = "hits"
    dtype: ClassVar[type[np.generic]] = np.bool_
    own: ClassVar[int] = 1
    truth: ClassVar[int] = 1

    def counts(self, truth: Array) -> Bits:
        """Whether images count, `[images]`, by their truth."""
        return np.array(truth[:, 0] >= 0)

    def other_truth(self, truth: Array, before: Array) -> str:
        """How the truth of an image differs from an earlier one, in words."""
        return f"label {truth[0]} in this evaluation, and {before[0]} in the earlier one"


@dataclass(frozen=True)
class AccuracyScore(AnswerScore):
    """Accuracies in percent and the mean cross-entropy; the totals are the sum of losses, and the top-5 hits.

    With fewer than five classes, all of them count as the top five. Balanced accuracy is the mean over the classes that
    have images.
    """

    metric: ClassVar[str] = "acc1"
    totals: ClassVar[int] = 2

    def about(self) -> dict[str, object]:
        """What a file says of the score."""
        return {}

    def row(self, own: Array, truth: Array, seen: Bits, totals: Floats | None) -> dict[str, float]:
        """The figures of a network, in the order of a row in a ledger; arguments as in `PerImage`."""
        (right, labels), images = (each[seen, 0] for each in (own, truth)), int(seen.sum())
        shares = [100 * hits / count for hits, count in zip(*by_class(right, labels), strict=True) if count]
        row = {"acc1": 100 * int(right.sum()) / images, "balanced_acc1": sum(shares) / len(shares)}
        if totals is not None:
            loss, top5 = totals.tolist()
            row |= {"acc5": 100 * top5 / images, "loss": loss / images}
        return row | {"images": images}


@dataclass(frozen=True)
class AgreementScore(AnswerScore):
    """How far answers agree with those of the end anchor, and the mean Kullback-Leibler divergence from it.

    The totals are the sum of divergences, the equal answers where the anchor is sure, and the images where it is.
    """

    metric: ClassVar[str] = "agree"
    totals: ClassVar[int] = 3

    def about(self) -> dict[str, object]:
        """What a file says of the score."""
        return {"metric": self.metric}

    def row(self, own: Array, truth: Array, seen: Bits, totals: Floats | None) -> dict[str, float]:  # noqa: ARG002
        """The figures of a network, in the order of a row in a ledger; arguments as in `PerImage`."""
        images = int(seen.sum())
        row: dict[str, float] = {"agree": 100 * int(own[seen].sum()) / images}
        if totals is None:
            return row | {"images": images}
        kl, equal, sure = totals.tolist()
        row |= {"agree_sure": 100 * equal / sure} if sure else {}
        return row | {"kl": kl / images, "images": images, "sure_images": int(sure)}


def by_class(right: Array, labels: Array, classes: int = 0) -> tuple[list[int], list[int]]:
    """The right answers and the images of each class, of at least so many."""
    images = np.bincount(labels, minlength=classes)
    return np.bincount(labels[right], minlength=len(images)).tolist(), images.tolist()


class DenseScore(Score):
    """A score whose figures are those of sums over images; those of the truth are zeros if an image does not count.

    An image's sums are `own` numbers, which depend on the prediction, then those of its `truth`.
    """

    file: ClassVar[str] = "sums"

    def counts(self, truth: Array) -> Bits:
        """Whether images count, `[images]`, by their truth."""
        return np.array(truth.any(axis=1))

    def other_truth(self, *_: object) -> str:
        """How the truth of an image differs from an earlier one, in words."""
        return "another truth than in the earlier one"

    @abstractmethod
    def figures(self, sums: Array) -> dict[str, Floats]:
        """The figures, `[...]`, of sums `[..., own + truth]`."""

    def row(self, own: Array, truth: Array, seen: Bits, _: Floats | None) -> dict[str, float]:
        """The figures of a network, in the order of a row in a ledger; arguments as in `PerImage`."""
        sums = np.hstack([own.astype(float), truth * seen[:, None]]).sum(axis=0)
        return {name: float(value) for name, value in self.figures(sums).items()} | {"images": int(seen.sum())}


@dataclass(frozen=True)
class SegmentationScore(DenseScore):
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

    def figures(self, sums: Array) -> dict[str, Floats]:
        """`miou` and `pixel_acc`, `[...]`, of sums `[..., 3 * num_classes]`; 0 without any pixel."""
        correct, predicted, true = np.split(np.asarray(sums, float), 3, axis=-1)
        union = predicted + true - correct
        ious, occurring = correct / np.maximum(union, 1), (union > 0).sum(axis=-1)
        miou = 100 * ious.sum(axis=-1) / np.maximum(occurring, 1)
        return {"miou": miou, "pixel_acc": 100 * correct.sum(axis=-1) / np.maximum(true.sum(axis=-1), 1)}


@dataclass(frozen=True)
class DepthScore(DenseScore):
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

    def figures(self, sums: Array) -> dict[str, Floats]:
        """`abs_rel`, `rmse` and `delta1`, `[...]`, of sums `[..., 4]`; 0 without any image."""
        sums = np.asarray(sums, float)
        abs_rel, rmse, near = np.moveaxis(sums[..., :3] / np.maximum(sums[..., 3:], 1), -1, 0)
        return {"abs_rel": abs_rel, "rmse": rmse, "delta1": 100 * near}


FILES = dict.fromkeys(("acc1", "agree"), AnswerScore.file) | dict.fromkeys(("miou", "delta1"), DenseScore.file)
"""The ending of the file that compares networks by a metric."""


def score_of(content: Mapping[str, Any], file: str) -> Score:
    """The score that a file with this ending describes."""
    if file == AnswerScore.file:
        if (metric := content.get("metric", "acc1")) not in ("acc1", "agree"):
            raise ValueError("it is of another format")
        return AccuracyScore() if metric == "acc1" else AgreementScore()
    if content["task"] == SegmentationScore.task:
        return SegmentationScore(int(content["num_classes"]))
    if content["task"] == DepthScore.task:
        return DepthScore()
    raise unknown("task", content["task"], (SegmentationScore.task, DepthScore.task))

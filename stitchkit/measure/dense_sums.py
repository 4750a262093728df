"""Scores of predictions for pixels, and the sums of each image for them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from stitchkit.display import counted
from stitchkit.errors import InputError
from stitchkit.measure.answers import BatchScore, Sums
from stitchkit.measure.scores import DepthScore, SegmentationScore

NOT_KNOWN = 255
"""The class of a pixel in a mask whose class is not known, and which does not count."""
MIN_DEPTH = 1e-3
"""Metres; where the truth is not above it, a sensor saw nothing."""
_NEAR = 1.25

Targets = Sequence[torch.Tensor]
"""The truth `[H, W]` of each image of a batch."""


class MapScore(BatchScore):
    """Judges maps, one image after the other, since outputs for all pixels are large."""

    def of_batch(self, output: Callable[[Targets], Iterator[torch.Tensor]], targets: Targets) -> Sums:
        """What maps are worth; `output` gives those of all images, `[K, H, W]`, at the sizes of their targets."""
        every = [self.of_image(each, target) for each, target in zip(output(targets), targets, strict=True)]
        own, truth = torch.cat(every).tensor_split([self.own], dim=1)
        return Sums(own.new_zeros(0, dtype=torch.float64), own, truth.int())

    @abstractmethod
    def of_image(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The sums of an image, `[1, own + truth]`."""


class ClassMaps(SegmentationScore, MapScore):
    """Judges class logits of pixels by masks."""

    def of_image(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The sums of an image, `[1, 3 * num_classes]`."""
        return segmentation_sums(output[None], target[None], self.num_classes)

    def nothing(self, images: int) -> str:
        """Why so many images give no figures, in words."""
        lacking = f"a known class, one other than {NOT_KNOWN}; check the masks of the validation set"
        return f"no pixel of {counted(images, 'image')} has {lacking}" if images else super().nothing(images)


@dataclass(frozen=True)
class DepthMaps(DepthScore, MapScore):
    """Judges depths `[1, H, W]` by true ones up to `max_depth`, in metres."""

    max_depth: float = 10.0

    def of_image(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The sums of an image, `[1, 4]`."""
        return depth_sums(output, target[None], self.max_depth)

    def nothing(self, images: int) -> str:
        """Why so many images give no figures, in words."""
        lacking = (
            f"a depth from {MIN_DEPTH:g} to {self.max_depth:g} m; check the unit of the depth maps, millimetres in a "
            "PNG and metres in an .npy file, and --max-depth (max_depth)"
        )
        return f"no pixel of {counted(images, 'image')} has {lacking}" if images else super().nothing(images)


@torch.no_grad()
def segmentation_sums(predictions: torch.Tensor, masks: torch.Tensor, num_classes: int) -> torch.Tensor:
    """The pixels of each class in each image, as `SegmentationScore` takes them, int64 `[B, 3 * num_classes]`.

    Predictions are classes `[B, H, W]` or logits `[B, num_classes, H, W]`; 255 in masks is a pixel that does not count.
    """
    classes = (predictions.argmax(dim=1) if predictions.ndim == 4 else predictions).int()
    assert classes.shape == masks.shape, "a prediction for each pixel of the mask"
    truth, unknown = masks.int(), masks == NOT_KNOWN
    _check_classes("a mask", truth.masked_fill(unknown, 0), num_classes)
    _check_classes("a prediction", classes.masked_fill(unknown, 0), num_classes)
    # Pixels that do not count, and those that are not found, are of one class more, which is left out.
    truth, classes = (each.masked_fill(unknown, num_classes) for each in (truth, classes))
    correct = truth.masked_fill(classes != truth, num_classes)
    bins = num_classes + 1
    first = torch.arange(len(truth), dtype=torch.int32, device=truth.device)[:, None, None] * bins
    counts = [
        torch.bincount((first + each).flatten(), minlength=len(truth) * bins) for each in (correct, classes, truth)
    ]
    return torch.stack(counts).view(3, len(truth), bins)[..., :num_classes].transpose(0, 1).flatten(1)


def _check_classes(what: str, classes: torch.Tensor, num_classes: int) -> None:
    least, most = (int(end) for end in classes.aminmax())
    if least < 0 or most >= num_classes:
        raise InputError(
            f"{what} has classes from {least} to {most}; there are {num_classes}, from 0 to {num_classes - 1}, and "
            f"{NOT_KNOWN} for pixels that do not count; check the masks and the number of classes"
        )


@torch.no_grad()
def depth_sums(
    depth: torch.Tensor, truth: torch.Tensor, max_depth: float, *, min_depth: float = MIN_DEPTH
) -> torch.Tensor:
    """The figures of each image, as `DepthScore` takes them, of predictions and truth `[B, H, W]` in metres.

    For each image the mean of |p - t| / t, the root of the mean of (p - t)^2 in metres, the share of pixels with
    max(p / t, t / p) < 1.25, and 1, float64 `[B, 4]`; zeros for an image without a pixel that counts. A pixel counts if
    min_depth < truth <= max_depth.
    """
    assert depth.shape == truth.shape, "a prediction for each pixel of the truth"
    valid = ((truth > min_depth) & (truth <= max_depth)).flatten(1)  # before float64, where 0.001 is larger
    predicted, true = depth.double().flatten(1), truth.double().flatten(1)
    # Where the truth does not count, both are 1, so that nothing is divided by 0 and no error is added.
    predicted, true = predicted.masked_fill(~valid, 1), true.masked_fill(~valid, 1)
    pixels, error = valid.sum(dim=1).double(), (predicted - true).abs()
    near = valid & (predicted < _NEAR * true) & (true < _NEAR * predicted)  # false for depths that are not positive
    sums = torch.stack([(error / true).sum(dim=1), error.square().sum(dim=1), near.sum(dim=1).double(), pixels], dim=1)
    if not sums.isfinite().all():
        number = int((~sums.isfinite()).any(dim=1).nonzero()[0])
        raise InputError(
            f"the depth of image {number} of a batch is not finite somewhere; the weights may have diverged, so "
            "evaluate those of an earlier epoch"
        )
    means = sums / pixels.clamp(min=1)[:, None]
    means[:, 1] = means[:, 1].sqrt()
    return means

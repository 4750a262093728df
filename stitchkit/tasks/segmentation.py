"""Segmentation: a class at each pixel, learned from masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from stitchkit.display import counted
from stitchkit.errors import InputError
from stitchkit.measure.scores import SegmentationScore
from stitchkit.settings.dense_recipe import DenseRecipe
from stitchkit.settings.tasks import NOT_KNOWN
from stitchkit.tasks.task import GREY, DenseLoss, DenseTask, Example, Map, MapScore, Paint

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_NAMES = 20
_TURN = 0.618034  # of the colour circle from a class to the next: the golden ratio keeps any number of them apart


class SegmentationLoss(DenseLoss):
    """Cross-entropy of class logits `[B, num_classes, h, w]` and class numbers `[B, H, W]`: its mean over all pixels.

    Pixels whose class is unknown count as zero. Without them in the mean, ranks would weigh images differently.

    Source: mmsegmentation's cross-entropy with its default `avg_non_ignore=False`, which the released code uses.
    """

    def _loss(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        # The reduced loss of torch is not deterministic on a GPU.
        return F.cross_entropy(output, target.long(), ignore_index=NOT_KNOWN, reduction="none").mean()


class ClassMaps(SegmentationScore, MapScore):
    """Judges class logits of pixels by masks."""

    def of_image(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The sums of an image, `[1, 3 * num_classes]`."""
        return segmentation_sums(output[None], target[None], self.num_classes)

    def nothing(self, images: int) -> str:
        """Why so many images give no figures, in words."""
        lacking = f"a known class, one other than {NOT_KNOWN}; check the masks of the validation set"
        return f"no pixel of {counted(images, 'image')} has {lacking}" if images else super().nothing(images)


class Segmentation(DenseTask):
    """Classes `[H, W]`."""

    def loss(self, _: DenseRecipe) -> DenseLoss:
        """Cross-entropy."""
        return SegmentationLoss()

    def score(self, _: DenseRecipe, num_classes: int) -> MapScore:
        """Mean IoU and pixel accuracy."""
        return ClassMaps(num_classes)

    def predicted(self, output: torch.Tensor) -> Map:
        """The class numbers `[H, W]` of logits `[K, H, W]`."""
        return output.argmax(dim=0).float().cpu().numpy()

    def known(self, target: torch.Tensor, _: DenseRecipe) -> torch.Tensor:
        """Whether the class of a pixel is known."""
        return target != NOT_KNOWN

    def paint(self, figure: Figure, _: Map, __: Sequence[Example], classes: Sequence[str]) -> Paint:
        """Colours of classes; few have their names below."""
        from matplotlib.patches import Patch

        colours = class_colours(len(classes))
        if len(colours) <= _MOST_NAMES:
            patches = [Patch(color=colour, label=name) for colour, name in zip(colours, classes, strict=True)]
            patches.append(Patch(color=GREY, label="ignored"))
            legend = figure.legend(
                handles=patches, loc="outside lower center", ncols=6, frameon=False, fontsize="small"
            )
            for text in legend.get_texts():
                text.set_parse_math(False)
        return lambda values: colours.take(values.astype(int), axis=0, mode="clip")

    def picture(self, output: torch.Tensor) -> Image.Image:
        """Places in a palette, as in masks."""
        image = Image.fromarray(self.predicted(output).astype(np.uint8))
        image.putpalette((255 * class_colours(len(output))).round().astype(np.uint8).tobytes())
        return image


def class_colours(count: int) -> Map:
    """A colour in 0 to 1 for each class, `[count, 3]`; that of a class does not depend on how many there are."""
    from matplotlib.colors import hsv_to_rgb  # slow to import

    numbers = np.arange(count)
    saturations, values = np.array([0.75, 0.45, 0.9])[numbers % 3], np.array([0.9, 0.75, 0.6, 1.0])[numbers % 4]
    return np.asarray(hsv_to_rgb(np.stack([(0.6 + numbers * _TURN) % 1, saturations, values], axis=1)))


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

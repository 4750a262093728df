"""Depth: the distance of each pixel in metres, learned from depth maps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from stitchkit.display import counted
from stitchkit.errors import InputError
from stitchkit.measure.scores import DepthScore
from stitchkit.settings.dense_recipe import DenseRecipe
from stitchkit.settings.tasks import MIN_DEPTH
from stitchkit.tasks.task import DenseLoss, DenseTask, Example, Map, MapScore, Paint

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_OFFSET = 1e-3
"""Metres that are added to depths before their logarithm, and the smallest depth that counts."""
_WEIGHT_OF_MEAN = 0.15
_NEAR = 1.25
_COLOURS = "viridis_r"
_MILLIMETRES = 65_535  # the largest number in a PNG of 16 bits; 0 is an unknown depth


class SigLoss(DenseLoss):
    """The scale-invariant loss of depths `[B, 1, h, w]` and true depths `[B, H, W]`, in metres.

    It is the root of var(g) + 0.15 mean(g)^2, where g is the difference of the logarithms at the pixels whose depth is
    known, which is from 1 mm to `max_depth`. The warm loss leaves out the variance.

    The mean of the gradients of two halves of a batch is not that of the batch, since variances do not add up. It is
    for the warm loss if both halves have as many known pixels and err in the same direction.

    Args:
        max_depth: The largest true depth that counts, in metres.
    """

    warm_steps = 100

    def __init__(self, *, max_depth: float = 10.0):
        super().__init__()
        self.max_depth = max_depth

    def _loss(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        g = self._log_ratios(output, target)
        if len(g) < 2:
            return self._root_of_mean(g)
        # vector_norm: the gradient of a square root is infinite at 0.
        spread = torch.linalg.vector_norm(g - g.mean()) / math.sqrt(len(g) - 1)
        root: torch.Tensor = torch.linalg.vector_norm(torch.stack([spread, self._root_of_mean(g)]))
        return root

    def _warm_loss(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return self._root_of_mean(self._log_ratios(output, target))

    def _log_ratios(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The logarithm of predicted by true depth at each known pixel, `[pixels]`."""
        is_known = (target >= _OFFSET) & (target <= self.max_depth)
        predicted, known = output[:, 0][is_known], target[is_known].float()
        return (predicted + _OFFSET).log() - (known + _OFFSET).log()

    def _root_of_mean(self, g: torch.Tensor) -> torch.Tensor:
        mean = g.sum() / max(1, len(g))  # zero, with a gradient, if no pixel is known
        return mean.abs() * math.sqrt(_WEIGHT_OF_MEAN)


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


class Depth(DenseTask):
    """Metres `[H, W]`."""

    def loss(self, settings: DenseRecipe) -> DenseLoss:
        """The scale-invariant loss."""
        return SigLoss(max_depth=settings.max_depth)

    def score(self, settings: DenseRecipe, _: int) -> MapScore:
        """Relative error, RMSE and the share of pixels near the truth."""
        return DepthMaps(settings.max_depth)

    def predicted(self, output: torch.Tensor) -> Map:
        """The only output."""
        return output[0].float().cpu().numpy()

    def known(self, target: torch.Tensor, settings: DenseRecipe) -> torch.Tensor:
        """Whether a depth was measured, and counts."""
        return (target > MIN_DEPTH) & (target <= settings.max_depth)

    def paint(self, figure: Figure, grid: Map, examples: Sequence[Example], _: Sequence[str]) -> Paint:
        """Colours of depths, all on the scale of the known ones."""
        from matplotlib import colormaps
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import Normalize

        known = np.concatenate([example.truth[example.known] for example in examples])
        scale = Normalize(*((known.min(), known.max()) if known.size else (0, 1)))
        colours = colormaps[_COLOURS]
        bar = figure.colorbar(ScalarMappable(scale, colours), ax=grid, location="bottom", shrink=0.5, aspect=40)
        bar.set_label("depth (m)")
        return lambda depths: colours(scale(depths))[..., :3]

    def picture(self, output: torch.Tensor) -> Image.Image:
        """Millimetres in 16 bits."""
        return Image.fromarray((1000 * self.predicted(output)).round().clip(1, _MILLIMETRES).astype(np.uint16))


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

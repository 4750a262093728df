"""The computation of a training step for dense prediction, and its losses."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from stitchkit.measure.dense_sums import NOT_KNOWN
from stitchkit.settings.dense_recipe import DenseRecipe
from stitchkit.settings.recipe import Recipe
from stitchkit.training.data import weights_dtype
from stitchkit.training.objective import Objective, RouteOutputs, StepBatch, Term
from stitchkit.training.samplers import Sampler
from stitchkit.training.task import StitchTask

_OFFSET = 1e-3
"""Metres that are added to depths before their logarithm, and the smallest depth that counts."""
_WEIGHT_OF_MEAN = 0.15


class DenseLoss(nn.Module, ABC):
    """The loss of a head's output and, at a lower weight, of its auxiliary outputs.

    Outputs are resized bilinearly to the target, in float32.

    Attributes:
        auxiliary_weight: Weight of the loss of each auxiliary output.
        warm_steps: The number of steps at the start of a training whose loss is the warm one.

    Source: Stitched ViTs, ADE20K and NYUv2.
    """

    auxiliary_weight = 0.4
    warm_steps = 0

    _is_warm = False

    def begin(self, step: int) -> None:
        """Note the number of a step: a count of calls would be wrong after a resumption and after an evaluation."""
        self._is_warm = step < self.warm_steps

    def forward(self, outputs: torch.Tensor | Sequence[torch.Tensor], target: torch.Tensor) -> torch.Tensor:
        """The loss `[]` of an output `[B, num_outputs, h, w]`, or of several, the main one first; target `[B, H, W]`.

        It is zero, and has gradients of zero, if nothing in the target is known.
        """
        loss_of = self._warm_loss if self._is_warm else self._loss
        each = [outputs] if isinstance(outputs, torch.Tensor) else outputs
        sized = [F.interpolate(output.float(), size=target.shape[-2:], mode="bilinear") for output in each]
        main, *others = [loss_of(output, target) for output in sized]
        return main + self.auxiliary_weight * sum(others) if others else main

    @abstractmethod
    def _loss(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The loss of an output `[B, num_outputs, H, W]`."""

    def _warm_loss(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return self._loss(output, target)


class SegmentationLoss(DenseLoss):
    """Cross-entropy of class logits `[B, num_classes, h, w]` and class numbers `[B, H, W]`: its mean over all pixels.

    Pixels whose class is unknown count as zero. Without them in the mean, ranks would weigh images differently.

    Source: mmsegmentation's cross-entropy with its default `avg_non_ignore=False`, which the released code uses.
    """

    def _loss(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        # The reduced loss of torch is not deterministic on a GPU.
        return F.cross_entropy(output, target.long(), ignore_index=NOT_KNOWN, reduction="none").mean()


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


class MapLoss(nn.Module):
    """A dense loss as a term of an objective: that of a head and its auxiliary heads for masks or depth maps."""

    def __init__(self, criterion: DenseLoss):
        super().__init__()
        self.criterion = criterion

    def forward(self, _: int | None, outputs: RouteOutputs, batch: StepBatch) -> torch.Tensor:
        """The loss, a scalar; the step says which loss its batches have."""
        self.criterion.begin(batch.step)
        loss: torch.Tensor = self.criterion([outputs.main, *outputs.others], batch.labels)
        return loss


def create_dense_task(model: nn.Module, recipe: Recipe, device: torch.device, sampler: Sampler | None) -> StitchTask:
    """The task of a recipe."""
    objective, dtype = Objective(Term(MapLoss(loss_of(recipe.dense)))), weights_dtype(recipe)
    return StitchTask(model, objective, sampler=sampler, device=device, dtype=dtype)


def loss_of(settings: DenseRecipe) -> DenseLoss:
    """The loss of a task."""
    return SegmentationLoss() if settings.task == "segmentation" else SigLoss(max_depth=settings.max_depth)

"""The computation of a training step for dense prediction."""

from __future__ import annotations

import torch
from torch import nn

from stitchkit.settings.recipe import Recipe
from stitchkit.tasks.table import TASKS
from stitchkit.tasks.task import DenseLoss
from stitchkit.training.data import weights_dtype
from stitchkit.training.objective import Objective, RouteOutputs, StepBatch, Term
from stitchkit.training.samplers import Sampler
from stitchkit.training.task import StitchTask


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
    objective, dtype = Objective(Term(MapLoss(TASKS[recipe.dense.task].loss(recipe.dense)))), weights_dtype(recipe)
    return StitchTask(model, objective, sampler=sampler, device=device, dtype=dtype)

"""The computation of a training step for dense prediction."""

from __future__ import annotations

import torch

from stitchkit.model.dense import DenseSNNet
from stitchkit.settings.dense_recipe import DenseRecipe
from stitchkit.settings.recipe import Recipe
from stitchkit.training.data import weights_dtype
from stitchkit.training.dense.losses import DenseLoss, SegmentationLoss, SigLoss
from stitchkit.training.samplers import Sampler
from stitchkit.training.task import StitchTask


class DenseTask(StitchTask):
    """Dense prediction with one stitch of an SN-Net; arguments as in `StitchTask`, without any that teaches."""

    criterion: DenseLoss

    def draw(self, step: int, rank: int) -> tuple[int, ...]:
        """The `cfg_id` that the sampler draws; the step also says which loss its batches have."""
        self.criterion.begin(step)
        return super().draw(step, rank)

    def forward(self, images: torch.Tensor, labels: torch.Tensor, cfg_id: int | None = None) -> dict[str, torch.Tensor]:
        """`loss` and `output`, `[B, num_classes, h, w]`, of one stitch; labels are classes or depths, `[B, H, W]`."""
        outputs = self.trainable_module(images, cfg_id)
        return {"loss": self.criterion(outputs, labels), "output": outputs[0]}


def create_dense_task(model: DenseSNNet, recipe: Recipe, device: torch.device, sampler: Sampler | None) -> DenseTask:
    """The task of a recipe."""
    loss, dtype = loss_of(recipe.dense), weights_dtype(recipe)
    return DenseTask(model, loss, sampler=sampler, settings=recipe.stitch, device=device, dtype=dtype)


def loss_of(settings: DenseRecipe) -> DenseLoss:
    """The loss of a task."""
    return SegmentationLoss() if settings.task == "segmentation" else SigLoss(max_depth=settings.max_depth)

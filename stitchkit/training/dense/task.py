"""The computation of a training step for dense prediction."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from stitchkit.distributed import sum_over_ranks
from stitchkit.model.dense import DenseSNNet
from stitchkit.networks.mode import judging
from stitchkit.settings.dense_recipe import DenseRecipe
from stitchkit.settings.recipe import Recipe
from stitchkit.training.data import weights_dtype
from stitchkit.training.dense.losses import DenseLoss, SegmentationLoss, SigLoss
from stitchkit.training.samplers import Sampler
from stitchkit.training.task import StitchTask


class DenseTask(StitchTask):
    """Dense prediction with one stitch of an SN-Net; arguments as in `StitchTask`, without any that teaches."""

    criterion: DenseLoss
    _is_warm = False

    def draw(self, step: int, rank: int) -> tuple[int, ...]:
        """Each `cfg_id` that the sampler draws; the step also says which loss its batches have."""
        self._is_warm = step < self.criterion.warm_steps
        return super().draw(step, rank)

    def forward(
        self, images: torch.Tensor, labels: torch.Tensor, cfg_id: int | None = None, *further: int
    ) -> dict[str, torch.Tensor]:
        """`loss`, the sum over stitches, and `output`, that of the first, `[B, num_classes, h, w]`.

        Args:
            images: `[B, C, H, W]`.
            labels: Class numbers or depths, `[B, H, W]`.
            cfg_id: The first stitch.
            further: Others, which learn the same.
        """
        outputs = [self.trainable_module(images, route) for route in (cfg_id, *further)]
        losses = [self.criterion(output, labels, warm=self._is_warm) for output in outputs]
        return {"loss": sum(losses[1:], losses[0]), "output": outputs[0][0]}

    @torch.no_grad()
    def losses(self, routes: Sequence[int], images: torch.Tensor, labels: torch.Tensor) -> list[float]:
        """As in `StitchTask`, stitch by stitch and without auxiliary heads."""
        network, found = self.network, []
        assert isinstance(network, DenseSNNet), "it is for dense prediction"
        with judging(network):
            for cfg_id in routes:
                output = network(images, cfg_id)
                assert isinstance(output, torch.Tensor), "only training has auxiliary outputs"
                found.append(self.criterion([output], labels, warm=self._is_warm).float())
        assert self.sampler is not None, "it drew them"
        losses = torch.stack(found)
        return (sum_over_ranks(losses) if self.sampler.shared else losses).tolist()


def create_dense_task(model: DenseSNNet, recipe: Recipe, device: torch.device, sampler: Sampler | None) -> DenseTask:
    """The task of a recipe."""
    return DenseTask(
        model,
        loss_of(recipe.dense),
        sampler=sampler,
        settings=recipe.stitch,
        device=device,
        dtype=weights_dtype(recipe),
    )


def loss_of(settings: DenseRecipe) -> DenseLoss:
    """The loss of a task."""
    return SegmentationLoss() if settings.task == "segmentation" else SigLoss(max_depth=settings.max_depth)

"""The task: the computation of a step, and the state that a checkpoint needs in addition to the network."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from timm.task import ClassificationTask
from timm.utils import unwrap_model
from torch import nn


class Task(ClassificationTask):  # type: ignore[misc]
    """A network with its loss; `task(images, labels, *routes)` returns a scalar `loss` and `output`.

    Attributes:
        num_routes: Number of routes that `draw` chooses from; 0 if a step has no choice.
    """

    num_routes: int = 0

    @property
    def network(self) -> nn.Module:
        """The network without its DistributedDataParallel wrapper."""
        network: nn.Module = unwrap_model(self.trainable_module)
        return network

    @property
    def average(self) -> nn.Module | None:
        """The network with the moving average of the weights; None if none is kept."""
        average: nn.Module | None = getattr(self.get_trainable_module(ema=True), "module", None)
        return average

    def draw(self, step: int, rank: int) -> tuple[int, ...]:  # noqa: ARG002
        """The routes of a step on a rank, a pure function of both; none if there is no choice.

        If it is one, the loss of the step is recorded as its loss.
        """
        return ()

    def counters(self) -> Mapping[str, torch.Tensor]:
        """Tensors, by name, that the steps of an epoch change in place on each rank separately."""
        return {}

"""The task: what a step computes, and what of it a checkpoint needs beside the network."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from timm.task import ClassificationTask
from timm.utils import unwrap_model
from torch import nn


class Task(ClassificationTask):  # type: ignore[misc]
    """A network with its loss, called as `task(images, labels, route)`, which gives `loss`, a scalar, and `output`.

    Attributes:
        num_routes: How many routes `draw` chooses among; 0 where a step has no choice.
    """

    num_routes: int = 0

    @property
    def network(self) -> nn.Module:
        """The network, without the wrapper that DistributedDataParallel is."""
        network: nn.Module = unwrap_model(self.trainable_module)
        return network

    @property
    def average(self) -> nn.Module | None:
        """The network with the moving average of the weights; None where none is kept."""
        average: nn.Module | None = getattr(self.get_trainable_module(ema=True), "module", None)
        return average

    def draw(self, step: int, rank: int) -> int | None:  # noqa: ARG002
        """The route that `rank` trains in `step`, a pure function of both; None where there is no choice."""
        return None

    def counters(self) -> Mapping[str, torch.Tensor]:
        """Tensors that steps change in place beside the network and its moving average, by name."""
        return {}

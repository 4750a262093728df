"""The cost of a stitch as the sum of the costs of its steps, each measured once."""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable
from functools import reduce
from typing import Generic, TypeVar

import torch
from torch import nn

from stitchkit.model.snnet import SNNet
from stitchkit.networks.mode import evaluating
from stitchkit.routes import Step, Stitch

T = TypeVar("T")


class RouteCosts(Generic[T]):
    """Costs of the stitches of one SN-Net; each step is measured on first use.

    Args:
        model: An SN-Net on any device; its weights do not matter.
        measure: Cost of a step, given the step and its input; costs can be added.
        batch_size: Number of images in the input.
    """

    def __init__(self, model: SNNet, measure: Callable[[nn.Module, torch.Tensor], T], *, batch_size: int = 1):
        self._model = model
        self._measure = measure
        self._batch_size = batch_size
        self._costs: dict[Hashable, T] = {}
        self._entering: dict[str, list[torch.Tensor]] = {}

    def cost(self, stitch: Stitch | int) -> T:
        """Cost of a stitch at the anchors' input size."""
        # Exact for FLOPs and parameters; latencies add up except for work that a GPU overlaps.
        return reduce(operator.add, map(self._cost_of, self._model.steps(stitch)))

    def _cost_of(self, step: Step) -> T:
        # Joints that share a stitching layer pay the same for it.
        key = step if step.joint is None else self._model.space.layers[step.joint]
        if key not in self._costs:
            module = self._model.module_of(step)
            self._costs[key] = self._measure(module, self._input_of(step))
        return self._costs[key]

    def _input_of(self, step: Step) -> torch.Tensor:
        """What enters a step, for blank images."""
        anchor = self._model.views[step.anchor]
        weights = next(anchor.model.parameters())
        images = torch.zeros(self._batch_size, *anchor.input_size, device=weights.device, dtype=weights.dtype)
        if step.kind == "stem":
            return images
        if step.anchor not in self._entering:
            with evaluating(anchor.model), torch.no_grad():
                self._entering[step.anchor] = anchor.features(images)
        return self._entering[step.anchor][step.index]

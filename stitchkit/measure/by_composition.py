"""What a stitch costs as the sum of what its steps cost, each measured once."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from functools import reduce
from typing import Generic, TypeVar

import torch
from torch import nn

from stitchkit.model.snnet import SNNet
from stitchkit.networks.mode import evaluating
from stitchkit.routes import Stitch

T = TypeVar("T")


class Composition(Generic[T]):
    """Costs of the stitches of one SN-Net; a step is measured when the first stitch needs it.

    Args:
        model: An SN-Net on any device; its weights do not matter.
        measure: Cost of a step, given the step and its input; costs can be added.
        batch_size: Images that go through at once.
    """

    def __init__(self, model: SNNet, measure: Callable[[nn.Module, torch.Tensor], T], *, batch_size: int = 1):
        self._model = model
        self._measure = measure
        self._batch_size = batch_size
        self._costs: dict[tuple[str, ...], T] = {}
        self._inputs: dict[str, list[torch.Tensor]] = {}

    def cost(self, stitch: Stitch | int) -> T:
        """Cost of a stitch at the anchors' input size.

        Raises:
            InputError: If the stitch is not in the space.
        """
        return reduce(operator.add, self._steps(self._model.resolve(stitch)))

    def _steps(self, stitch: Stitch) -> Iterator[T]:
        final_norm = stitch.is_anchor or self._model.stitched_final_norm
        yield self._step(stitch.segments[0].anchor, "stem")
        for segment in stitch.segments:
            for block in range(segment.start, segment.stop):
                yield self._step(segment.anchor, str(block))
        for joint in stitch.joints:
            layer = self._model.layer(joint)
            x = self._entering(joint.front)[joint.front_block + 1]
            yield self._measured(("layer", *map(str, self._model.space.layers[joint])), layer, x)
        yield self._step(stitch.segments[-1].anchor, "head" if final_norm else "head without norm")

    def _step(self, label: str, step: str) -> T:
        """Cost of one step of one anchor: its stem, a block by number, or its head."""
        anchor = self._model.views[label]
        inputs = self._entering(label)
        if step == "stem":
            return self._measured((label, step), anchor.stem, self._images(label))
        if step.startswith("head"):
            return self._measured((label, step), anchor.head(final_norm=step == "head"), inputs[-1])
        return self._measured((label, step), anchor.blocks[int(step)], inputs[int(step)])

    def _images(self, label: str) -> torch.Tensor:
        anchor = self._model.views[label]
        weights = next(anchor.model.parameters())
        return torch.zeros(self._batch_size, *anchor.input_size, device=weights.device, dtype=weights.dtype)

    def _entering(self, label: str) -> list[torch.Tensor]:
        """What enters each block of an anchor, for blank images."""
        if label not in self._inputs:
            anchor = self._model.views[label]
            with evaluating(anchor.model), torch.no_grad():
                self._inputs[label] = anchor.features(self._images(label))
        return self._inputs[label]

    def _measured(self, key: tuple[str, ...], step: nn.Module, x: torch.Tensor) -> T:
        if key not in self._costs:
            self._costs[key] = self._measure(step, x)
        return self._costs[key]

"""The sampler `best_of`: of a few routes of one cost, the one that the images of the step suit best."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

from stitchkit.training.samplers.cost_bins import CostBins

_ROUTES = 3


class BestOf(CostBins):
    """Draws a few routes of one bin, and trains the one with the lowest loss on the step's first batch.

    Source: AttentiveNAS (Wang et al., 2021), its BestUp with the loss as the measure.
    """

    options: ClassVar[frozenset[str]] = CostBins.options | {"sampler_routes"}

    def draw(self, step: int, rank: int) -> tuple[int, ...]:
        """`sampler_routes` different routes of a bin, or all of a smaller one."""
        random = self.random(step, rank)
        members = self.bin(random)
        count = min(self.settings.sampler_routes or _ROUTES, len(members))
        return tuple(random.choice(members, size=count, replace=False).tolist())

    def choose(self, drawn: tuple[int, ...], losses: Callable[[tuple[int, ...]], Sequence[float]]) -> tuple[int, ...]:
        """The route with the lowest loss."""
        if len(drawn) == 1:
            return drawn
        found = losses(drawn)
        return (drawn[min(range(len(drawn)), key=found.__getitem__)],)

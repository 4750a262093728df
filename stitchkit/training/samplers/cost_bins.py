"""The sampler `cost_bins`: every cost alike, whether many routes have it or few."""

from __future__ import annotations

import logging
import math
from bisect import bisect_right
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import ClassVar

import numpy as np

from stitchkit.display import counted, quantity
from stitchkit.errors import InputError
from stitchkit.settings.schema import budget_list
from stitchkit.settings.stitch_recipe import StitchRecipe
from stitchkit.training.samplers.sampler import Sampler

_logger = logging.getLogger(__name__)

_GIGA = 1e9
_PARTS = 16
"""Between two neighbouring anchors, the gap by default is one of so many equal parts of their difference.

Routes of the published spaces lie close to twelve steps of equal cost, so that a bin of a twelfth would reach from one
into the next.
"""


def cost_bins(costs: Mapping[int, float], gap: Callable[[float], float]) -> list[tuple[int, ...]]:
    """Routes in bins from cheap to costly: one begins at its cheapest route and spans at most a gap from there.

    Args:
        costs: FLOPs by `cfg_id`.
        gap: The FLOPs that a bin spans, given those at which it begins.

    Source: the resource-constrained sampler of SN-Netv2, as released: the first bin begins at 0 FLOPs.
    """
    bins: list[list[int]] = [[]]
    start = 0.0
    for cfg_id in sorted(costs, key=lambda cfg_id: costs[cfg_id]):
        if costs[cfg_id] - start > gap(start):
            start = costs[cfg_id]
            bins.append([])
        bins[-1].append(cfg_id)
    return [tuple(members) for members in bins if members]


def gap_between(anchors: Sequence[float]) -> Callable[[float], float]:
    """The gap by default: cheap anchors lie closer together than costly ones, and so do the routes between them.

    Args:
        anchors: FLOPs of each anchor.
    """
    steps = sorted(set(anchors))

    def gap(start: float) -> float:
        place = min(max(bisect_right(steps, start), 1), len(steps) - 1)
        return (steps[place] - steps[place - 1]) / _PARTS if len(steps) > 1 else 0.0

    return gap


def budget_bins(
    costs: Mapping[int, float], gap: Callable[[float], float], budgets: Sequence[float]
) -> list[tuple[int, ...]]:
    """For each budget in FLOPs, the costliest route within it, and those that cost at most a gap less.

    Raises:
        InputError: If no route is within a budget.
    """
    bins: list[tuple[int, ...]] = []
    for budget in budgets:
        within = [cost for cost in costs.values() if cost <= budget]
        if not within:
            raise InputError(
                f"--budgets: no route costs {quantity(budget)} FLOPs or less; the cheapest costs "
                f"{quantity(min(costs.values()))}, so raise this budget or leave it out"
            )
        top = max(within)
        width = gap(math.nextafter(top, 0))  # of the anchors below: an anchor itself begins the next, wider bins
        members = tuple(cfg_id for cfg_id, cost in costs.items() if top - width <= cost <= top)
        if members in bins:
            raise InputError(
                f"--budgets: {quantity(budget)} FLOPs allow the same routes as another budget; leave one out"
            )
        bins.append(members)
    return bins


class CostBins(Sampler):
    """Draws a bin of similar costs, then a route of it: an anchor alone in its bin is trained as often as a whole bin.

    Attributes:
        costs: FLOPs by `cfg_id`.
        bins: The routes of each bin; with `budgets`, of each budget.
        shares: Probability of each bin.

    Source: the resource-constrained sampler (ROS) of SN-Netv2.
    """

    options: ClassVar[frozenset[str]] = frozenset({"budgets", "flops_gap", "flops_sampling_k"})

    def __init__(
        self, cfg_ids: Sequence[int], cost: Callable[[int], int], settings: StitchRecipe, seed: int,
        anchors: Collection[int],
    ):  # fmt: skip
        super().__init__(cfg_ids, cost, settings, seed, anchors)
        self.costs = costs = {cfg_id: cost(cfg_id) for cfg_id in cfg_ids}
        given = settings.flops_gap
        gap = gap_between([*map(cost, anchors)]) if given is None else (lambda _: given * _GIGA)
        if settings.budgets is not None:
            self.bins = budget_bins(costs, gap, budget_list(settings.budgets))
        else:
            self.bins = cost_bins(costs, gap)
        weights = np.full(len(self.bins), 1 / len(self.bins))
        if settings.flops_sampling_k is not None and settings.budgets is not None:
            _logger.warning("--flops-sampling-k has no effect beside --budgets, which are all as likely")
        elif settings.flops_sampling_k is not None:
            weights += np.arange(len(self.bins)) / settings.flops_sampling_k
        self.shares = weights / weights.sum()
        sizes = [*map(len, self.bins)]
        span = counted(sizes[0], "route") if min(sizes) == max(sizes) else f"{min(sizes)} to {max(sizes)} routes"
        kind = "cost bins" if settings.budgets is None else "bins at the budgets"
        _logger.info("%s: %d, of %s each", kind, len(sizes), span)

    def draw(self, step: int, rank: int) -> int:
        """A route of a bin."""
        random = self.random(step, rank)
        return int(random.choice(self.bin(random)))

    def bin(self, random: np.random.Generator) -> tuple[int, ...]:
        """The routes of a bin, drawn by `shares`."""
        return self.bins[int(random.choice(len(self.bins), p=self.shares))]

"""Samplers: the route of each training step. docs/samplers.md compares them and shows how to write one."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from stitchkit.display import counted
from stitchkit.errors import InputError, unknown
from stitchkit.settings.schema import flag_of
from stitchkit.settings.stitch_recipe import StitchRecipe

_logger = logging.getLogger(__name__)

_GIGA = 1e9
_PARTS = 16
"""The default gap is this part of the difference between two neighbouring anchors.

Routes of the published spaces lie close to twelve steps of equal cost, so a bin of a twelfth would reach into the next.
"""
_REMOVED = {
    "sandwich": "studies/samplers has it", "best_of": "studies/samplers has it", "importance": "it was never measured",
}  # fmt: skip
"""Samplers of earlier versions, which checkpoints and settings files may still name, and what became of them."""


@dataclass
class Sampler(ABC):
    """Decides which route each step trains.

    Attributes:
        options: Names of the settings that this sampler has and some others lack.
    """

    options: ClassVar[frozenset[str]] = frozenset()

    cfg_ids: Sequence[int]  # the routes that have something to train, in the order of the space
    cost: Callable[[int], int]  # FLOPs of a route, measured when it is called
    settings: StitchRecipe
    seed: int  # of the run
    anchors: Collection[int]  # the uncut ones, also those that are not trained

    @property
    def shared(self) -> bool:
        """Whether all ranks train the same route."""
        return self.settings.sampling == "shared"

    def random(self, step: int, rank: int) -> np.random.Generator:
        """The random numbers of a step: a resumed run repeats itself, since none is left over from an earlier one."""
        return np.random.default_rng((self.seed, step, 0 if self.shared else rank))

    @abstractmethod
    def draw(self, step: int, rank: int) -> int:
        """The route of a step on a rank: a pure function of seed, step and rank."""


class Uniform(Sampler):
    """Draws all routes with equal probability, as in the published training of SN-Net.

    Source: SN-Net, section 3.3 and algorithm 1.
    """

    def draw(self, step: int, rank: int) -> int:
        """Any route."""
        return self.cfg_ids[int(self.random(step, rank).integers(len(self.cfg_ids)))]


@dataclass
class CostBins(Sampler):
    """Draws a bin of similar costs, then a route of it: an anchor alone in its bin is trained as often as a whole bin.

    Attributes:
        costs: FLOPs by `cfg_id`.
        bins: The routes of each bin.
        shares: Probability of each bin.

    Source: the resource-constrained sampler (ROS) of SN-Netv2.
    """

    options: ClassVar[frozenset[str]] = frozenset({"flops_gap", "flops_sampling_k"})

    def __post_init__(self) -> None:
        self.costs = costs = {cfg_id: self.cost(cfg_id) for cfg_id in self.cfg_ids}
        fixed, slope = self.settings.flops_gap, self.settings.flops_sampling_k
        gap = gap_between([*map(self.cost, self.anchors)]) if fixed is None else (lambda _: fixed * _GIGA)
        self.bins = cost_bins(costs, gap)
        weights = np.full(len(self.bins), 1 / len(self.bins))
        if slope is not None:
            weights += np.arange(len(self.bins)) / slope
        self.shares = weights / weights.sum()
        sizes = [*map(len, self.bins)]
        span = counted(sizes[0], "route") if min(sizes) == max(sizes) else f"{min(sizes)} to {max(sizes)} routes"
        _logger.info("cost bins: %d, of %s each", len(sizes), span)

    def draw(self, step: int, rank: int) -> int:
        """A route of a bin."""
        random = self.random(step, rank)
        return int(random.choice(self.bin(random)))

    def bin(self, random: np.random.Generator) -> tuple[int, ...]:
        """The routes of a bin, drawn by `shares`."""
        return self.bins[int(random.choice(len(self.bins), p=self.shares))]


def cost_bins(costs: Mapping[int, float], gap: Callable[[float], float]) -> list[tuple[int, ...]]:
    """Routes in bins from cheap to costly, from FLOPs by `cfg_id`: a bin spans at most the `gap` at its first FLOPs.

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
    """The default gap, from the anchors' FLOPs: cheap anchors and their routes lie closer together than costly ones."""
    steps = sorted(set(anchors))

    def gap(start: float) -> float:
        above = min(max(bisect_right(steps, start), 1), len(steps) - 1)
        return (steps[above] - steps[above - 1]) / _PARTS if len(steps) > 1 else 0.0

    return gap


SAMPLERS: dict[str, type[Sampler]] = {"uniform": Uniform, "cost_bins": CostBins}
"""The samplers by the name that the setting `sampler` gives them; one of your own is added here."""


def removal_of(name: object) -> str | None:
    """What became of a sampler of earlier versions; None of others, and if a plug-in has put it back."""
    return _REMOVED[name] if isinstance(name, str) and name in _REMOVED and name not in SAMPLERS else None


def check_sampler(settings: StitchRecipe) -> None:
    """Refuse an unknown sampler, and warn of settings that it does not have."""
    name = settings.sampler
    if (removal := removal_of(name)) is not None:
        raise InputError(f"--sampler {name} was removed ({removal}); choose from {', '.join(SAMPLERS)}")
    if name not in SAMPLERS:
        raise InputError(f"--sampler: {unknown('value', name, SAMPLERS)}")
    for option in sorted(set().union(*(sampler.options for sampler in SAMPLERS.values())) - SAMPLERS[name].options):
        if getattr(settings, option) != getattr(StitchRecipe(), option):  # no error: it may be in a published file
            having = ", ".join(other for other, sampler in SAMPLERS.items() if option in sampler.options)
            _logger.warning("%s has no effect with --sampler %s; choose from %s", flag_of(option), name, having)


def create_sampler(
    cfg_ids: Sequence[int], cost: Callable[[int], int], settings: StitchRecipe, seed: int, anchors: Collection[int]
) -> Sampler:
    """The sampler that the settings name, which have been checked; arguments as in `Sampler`."""
    return SAMPLERS[settings.sampler](cfg_ids, cost, settings, seed, anchors)

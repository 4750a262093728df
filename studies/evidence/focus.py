"""Focus: stop training stitches that are rarely on the Pareto front of held-out training images."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterable, Sequence

import numpy as np
import torch

from stitchkit.data.batches import Batch
from stitchkit.measure.formulas import Bits, share_on_front
from stitchkit.measure.pareto import pareto_front
from stitchkit.model.onepass import OnePass
from stitchkit.model.snnet import SNNet
from stitchkit.networks.mode import evaluating
from stitchkit.training.samplers import CostBins

_logger = logging.getLogger(__name__)

_LEAST = 0.05
"""Stitches with a smaller P(on the front) are dropped."""
_DISAGREE = 0.1
"""Share of images where two stitches of similar cost usually disagree."""


class FocusedBins(CostBins):
    """Draws as `cost_bins`, from the routes that are left; an empty bin gives its share to the others."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._all = self.bins, self.shares

    def drop(self, routes: Collection[int]) -> None:
        """Draw some routes no more."""
        self.cfg_ids = tuple(cfg_id for cfg_id in self.cfg_ids if cfg_id not in routes)
        bins, shares = self._all
        self.bins = [tuple(cfg_id for cfg_id in members if cfg_id in self.cfg_ids) for members in bins]
        self.shares = shares * [bool(members) for members in self.bins]
        self.shares = self.shares / self.shares.sum()


def narrow(network: SNNet, sampler: FocusedBins, first: Iterable[Batch], rest: Iterable[Batch]) -> None:
    """Let a sampler draw only stitches that are worth training, by the anchors and all that it draws now.

    Args:
        network: Its stitches are judged; it has no batch norms.
        first: Held-out images with labels, which all stitches see.
        rest: Others, which only those see that are not clearly behind on the first: by more than two standard
            deviations of a difference below the best at their cost.
    """
    anchors = range(network.space.num_anchors)
    routes = sorted({*sampler.cfg_ids, *anchors})
    costs = {cfg_id: sampler.cost(cfg_id) for cfg_id in routes}
    right = _right(network, routes, first)
    most = 2 * math.sqrt(_DISAGREE * right.shape[1])
    # Anchors come first, so that their places are their numbers.
    alive = _survivors(right.sum(axis=1).tolist(), [*costs.values()], most, always=anchors)
    judged = [routes[place] for place in alive]
    right = np.concatenate([right[alive], _right(network, judged, rest)], axis=1)
    kept = {judged[place] for place in worth_training(right, [costs[cfg_id] for cfg_id in judged], always=anchors)}
    dropped = [cfg_id for cfg_id in sampler.cfg_ids if cfg_id not in kept]
    if len(dropped) < len(sampler.cfg_ids):
        sampler.drop(dropped)
        _logger.info("dropped %d stitches: %s", len(dropped), ", ".join(map(str, dropped)) or "none")


@torch.no_grad()
def _right(network: SNNet, routes: Sequence[int], batches: Iterable[Batch]) -> Bits:
    """Which images stitches have right, `[routes, images]`."""
    one_pass = OnePass(network, routes)
    with evaluating(network):
        answers = [(one_pass(images), labels) for images, labels in batches]
    bits = [torch.stack([logits[cfg_id].argmax(1) == labels for cfg_id in routes]) for logits, labels in answers]
    return torch.cat(bits, dim=1).cpu().numpy()


def _survivors(right: Sequence[int], costs: Sequence[float], most: float, always: Collection[int]) -> list[int]:
    """The places of networks that none as cheap beats by more than `most` right answers, and of those in `always`."""
    kept, best = {*always}, 0
    for place in sorted(range(len(costs)), key=lambda place: (costs[place], -right[place])):
        best = max(best, right[place])
        if best - right[place] <= most:
            kept.add(place)
    return sorted(kept)


def worth_training(right: Bits, costs: Sequence[float], always: Collection[int] = ()) -> list[int]:
    """The places of the stitches that may be on the front of cost and accuracy.

    They are on it in at least 5 % of sets of images drawn anew, or on that of these images: of many stitches that are
    alike, each may be on the front too rarely, and yet one of them is.

    Args:
        right: Whether a stitch's answer is the label, `[stitches, images]`; all have seen all images.
        costs: The cost of each, such as FLOPs.
        always: Places of stitches that stay in any case.
    """
    kept = {*always}
    kept |= {place for place, share in enumerate(share_on_front(right, costs)) if share >= _LEAST}
    accuracies = 100 * right.sum(axis=1) / right.shape[1]
    rows = [{"cfg_id": place, "flops": cost, "acc1": accuracies[place]} for place, cost in enumerate(costs)]
    return sorted(kept | {row["cfg_id"] for row in pareto_front(rows, metric="acc1")})

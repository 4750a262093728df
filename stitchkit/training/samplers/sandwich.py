"""The sampler `sandwich`: the costliest anchor learns from labels; the cheapest route and some random ones from it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from itertools import chain
from typing import ClassVar

import torch
from torch.nn import functional as F

from stitchkit.errors import InputError
from stitchkit.settings.stitch_recipe import StitchRecipe
from stitchkit.training.samplers.cost_bins import CostBins

_RANDOM = 2
_CLIP = 5.0
"""Limit of a ratio of probabilities to the power of alpha."""


class Sandwich(CostBins):
    """Trains several routes in each step: the costliest anchor by labels, the others by its logits.

    A stitch may cost a little more than it; but its joint has yet to learn, so the anchor is the better teacher. The
    costliest route takes its place where anchors are not trained, and with `budgets`, which may be below it.

    Source: the sandwich rule of universally slimmable networks (Yu and Huang, 2019) and AlphaNet (Wang et al., 2021).
    """

    trains_several: ClassVar[bool] = True
    options: ClassVar[frozenset[str]] = CostBins.options | {"sampler_routes", "sandwich_divergence"}

    def __init__(
        self, cfg_ids: Sequence[int], cost: Callable[[int], int], settings: StitchRecipe, seed: int,
        anchors: Collection[int],
    ):  # fmt: skip
        super().__init__(cfg_ids, cost, settings, seed, anchors)
        members = self._members()
        if (count := settings.sampler_routes or 0) > len(members):
            raise InputError(
                f"--sampler-routes is {count}, but only {len(members)} routes are drawn; give at most that many"
            )

    def _members(self) -> list[int]:
        """The routes that are drawn."""
        routes = {*self.cfg_ids}
        return [cfg_id for cfg_id in {*chain.from_iterable(self.bins)} if cfg_id in routes]

    @property
    def ends(self) -> tuple[int, int]:
        """The teacher and the cheapest route."""
        members = self._members()
        anchors = [] if self.settings.budgets is not None else [*self.costs.keys() & {*self.anchors}]
        return max(anchors or members, key=self.costs.__getitem__), min(members, key=self.costs.__getitem__)

    def draw(self, step: int, rank: int) -> tuple[int, ...]:
        """The teacher, the cheapest route, and `sampler_routes` random ones; each only once."""
        random = self.random(step, rank)
        count = self.settings.sampler_routes or _RANDOM
        others = [int(random.choice(self.bin(random))) for _ in range(count)]
        return tuple(dict.fromkeys((*self.ends, *others)))

    def divergence(self, given: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """Kullback-Leibler divergence, or the adaptive one if the settings ask for it."""
        if self.settings.sandwich_divergence == "kl":
            return super().divergence(given, wanted)
        return adaptive_divergence(given, wanted)


def adaptive_divergence(given: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """A loss with the gradient of the larger of two alpha-divergences, -1 and 1, of each image; its value means little.

    Alpha 1 punishes a student that misses what the teacher considers possible, alpha -1 one that adds to it.

    Args:
        given: Logits of the student, `[B, num_classes]`.
        wanted: Logits of the teacher.

    Source: AlphaNet (Wang et al., 2021) and its released code, with ratios clipped at 5.
    """
    log_q, log_p = F.log_softmax(given.float(), dim=1), F.log_softmax(wanted.detach().float(), dim=1)
    q, p = log_q.detach().exp(), log_p.exp()
    inverse = (log_q.detach() - log_p).exp().clamp(max=_CLIP)
    over = (q * (inverse - 1) / 2).sum(1)
    under = (p * (log_p - log_q.detach())).sum(1)
    # The gradient of sum(q * f(p / q)) is that of -sum(q * rho * log q), where q and rho are constants.
    weights = torch.where((over > under)[:, None], q * (0.5 - inverse), p)
    return -(weights * log_q).sum(1).mean()

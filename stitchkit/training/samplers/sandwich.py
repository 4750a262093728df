"""The sampler `sandwich`: the costliest route learns from labels; the cheapest and some random ones learn from it."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch.nn import functional as F

from stitchkit.training.samplers.cost_bins import CostBins

_RANDOM = 2
_CLIP = 5.0
"""Limit of a ratio of probabilities to the power of alpha."""


class Sandwich(CostBins):
    """Trains several routes in each step: the costliest by labels, the others by its logits.

    Source: the sandwich rule of universally slimmable networks (Yu and Huang, 2019) and AlphaNet (Wang et al., 2021).
    """

    trains_several: ClassVar[bool] = True

    def draw(self, step: int, rank: int) -> tuple[int, ...]:
        """The costliest route, the cheapest, and `sampler_routes` random ones; each only once."""
        random = self.random(step, rank)
        count = self.settings.sampler_routes or _RANDOM
        others = [int(random.choice(self.bin(random))) for _ in range(count)]
        ends = (max(self.costs, key=self.costs.__getitem__), min(self.costs, key=self.costs.__getitem__))
        return tuple(dict.fromkeys((*ends, *others)))

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

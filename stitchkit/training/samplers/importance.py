"""The sampler `importance`: within a bin, rather routes whose weights matter to the loss."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import numpy as np
import torch

from stitchkit.settings.stitch_recipe import StitchRecipe
from stitchkit.training.samplers.cost_bins import CostBins

_DECAY = 0.9
_UNIFORM = 0.2
"""Share of draws within a bin in which all its routes are alike, so that none is forgotten."""


class Importance(CostBins):
    """Draws a bin, then a route of it by a running score: how much the loss depends on the route's weights.

    The score of a route is a moving average, over the steps that trained it, of the mean of abs(gradient * weight). In
    a bin, scores are measured in their standard deviations from their mean; a route without a score counts as the mean.

    Source: ESTA (He et al., 2024) names the idea, SNIP (Lee et al., 2019) the score; decay and mixture are ours.
    """

    def __init__(
        self, cfg_ids: Sequence[int], cost: Callable[[int], int], settings: StitchRecipe, seed: int,
        anchors: Collection[int],
    ):  # fmt: skip
        super().__init__(cfg_ids, cost, settings, seed, anchors)
        self._places = {cfg_id: place for place, cfg_id in enumerate(cfg_ids)}
        self._sums = torch.zeros(len(cfg_ids), dtype=torch.float64)
        self._counts = torch.zeros_like(self._sums)

    def draw(self, step: int, rank: int) -> tuple[int, ...]:
        """One route."""
        random = self.random(step, rank)
        members = self.bin(random)
        return (int(random.choice(members, p=self.shares_within(members))),)

    def scores(self) -> dict[int, float]:
        """The score of each route that was trained, by `cfg_id`."""
        counts, sums = self._counts.tolist(), self._sums.tolist()
        # The average began at 0; the division takes that back.
        return {
            cfg_id: sums[place] / (1 - _DECAY ** counts[place])
            for cfg_id, place in self._places.items()
            if counts[place]
        }

    def shares_within(self, members: Sequence[int]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """Probability of each route of a bin."""
        scores = self.scores()
        known = [scores[cfg_id] for cfg_id in members if cfg_id in scores]
        spread = float(np.std(known)) if known else 0.0
        weights = np.ones(len(members))
        if spread > 0:
            mean = float(np.mean(known))
            weights = np.exp([(scores.get(cfg_id, mean) - mean) / spread for cfg_id in members])
        return np.asarray((1 - _UNIFORM) * weights / weights.sum() + _UNIFORM / len(members))

    def observe(self, routes: Iterable[int], sensitivity: Callable[[int], torch.Tensor]) -> None:
        """Update the scores of the routes of all ranks; gradients that overflowed say nothing."""
        for cfg_id in sorted({*routes}):
            found, place = sensitivity(cfg_id).item(), self._places[cfg_id]
            if np.isfinite(found):
                self._sums[place] = _DECAY * self._sums[place] + (1 - _DECAY) * found
                self._counts[place] += 1

    def kept(self) -> Mapping[str, torch.Tensor]:
        """Sums and counts of the scores."""
        return {**super().kept(), "sums": self._sums, "counts": self._counts}

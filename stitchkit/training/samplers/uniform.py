"""The sampler `uniform`: every route alike."""

from __future__ import annotations

from stitchkit.training.samplers.sampler import Sampler


class Uniform(Sampler):
    """Draws all routes alike, as in the published training of SN-Net.

    Source: SN-Net, section 3.3 and algorithm 1.
    """

    def draw(self, step: int, rank: int) -> int:
        """Any route."""
        return self.cfg_ids[int(self.random(step, rank).integers(len(self.cfg_ids)))]

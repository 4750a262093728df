"""The stitch that a step trains: a pure function of the step, so that a resumed run repeats itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Sampler:
    """Draws stitches uniformly, one per rank, as in the published training, or one `shared` by all ranks.

    Source: SN-Net, section 3.3 and algorithm 1.
    """

    cfg_ids: Sequence[int]
    seed: int
    shared: bool = False

    def draw(self, step: int, rank: int) -> int:
        """The `cfg_id` that `rank` trains in `step`."""
        stream = (self.seed, step, 0 if self.shared else rank)  # a generator with state would have to be in checkpoints
        return self.cfg_ids[int(np.random.default_rng(stream).integers(len(self.cfg_ids)))]

"""The interface of a sampler."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from typing import ClassVar

import numpy as np

from stitchkit.settings.stitch_recipe import StitchRecipe


class Sampler(ABC):
    """Decides which route each step trains.

    Args:
        cfg_ids: The routes that have something to train, in the order of the space.
        cost: FLOPs of a route, measured when it is called.
        settings: The settings of stitching.
        seed: Random seed of the run.
        anchors: The uncut anchors, also those that are not trained.

    Attributes:
        options: The settings that only some samplers have, by name, of which this one has these.
    """

    options: ClassVar[frozenset[str]] = frozenset()

    def __init__(
        self, cfg_ids: Sequence[int], cost: Callable[[int], int], settings: StitchRecipe, seed: int,
        anchors: Collection[int],
    ):  # fmt: skip
        self.cfg_ids = tuple(cfg_ids)
        self.cost = cost
        self.settings = settings
        self.seed = seed
        self.anchors = anchors

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

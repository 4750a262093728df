"""The interface of a sampler."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch
from torch.nn import functional as F

from stitchkit.settings.stitch_recipe import StitchRecipe


class Sampler(ABC):
    """Decides which routes each step trains.

    It has to draw; what else it can do has a default. It sees the network only through the functions that it is given.

    Args:
        cfg_ids: The routes that have something to train, in the order of the space.
        cost: FLOPs of a route, measured when it is called.
        settings: The settings of stitching.
        seed: Random seed of the run.
        anchors: The uncut anchors, also those that are not trained.

    Attributes:
        left: Whether each route is trained, `[routes]`; `--focus` drops some.
        trains_several: Whether a step trains more than one route of `draw`.
        options: The settings that only some samplers have, by name, of which this one has these.
    """

    trains_several: ClassVar[bool] = False
    options: ClassVar[frozenset[str]] = frozenset()

    def __init__(
        self, cfg_ids: Sequence[int], cost: Callable[[int], int], settings: StitchRecipe, seed: int,
        anchors: Collection[int],
    ):  # fmt: skip
        self.left = np.ones(len(cfg_ids), bool)
        self._routes = tuple(cfg_ids)
        self.cost = cost
        self.settings = settings
        self.seed = seed
        self.anchors = anchors

    @property
    def cfg_ids(self) -> tuple[int, ...]:
        """The routes that are trained: all that it was given, until some are dropped."""
        return tuple(cfg_id for cfg_id, is_left in zip(self._routes, self.left.tolist(), strict=True) if is_left)

    def drop(self, routes: Collection[int]) -> None:
        """Train some routes no more; every rank drops the same."""
        for place, cfg_id in enumerate(self._routes):
            if cfg_id in routes:
                self.left[place] = False

    @property
    def shared(self) -> bool:
        """Whether all ranks train the same routes."""
        return self.settings.sampling == "shared"

    def random(self, step: int, rank: int) -> np.random.Generator:
        """The random numbers of a step: a resumed run repeats itself, since none is left over from an earlier one."""
        return np.random.default_rng((self.seed, step, 0 if self.shared else rank))

    @abstractmethod
    def draw(self, step: int, rank: int) -> tuple[int, ...]:
        """The routes of a step on a rank: a pure function of seed, step, rank and `kept`.

        The first learns from labels, and from the teacher if there is one; the others, if any, from its logits.
        """

    def choose(self, drawn: tuple[int, ...], losses: Callable[[tuple[int, ...]], Sequence[float]]) -> tuple[int, ...]:  # noqa: ARG002
        """Which of the routes drawn are trained, now that the images of the step are known.

        Args:
            drawn: The result of `draw`.
            losses: Gives the loss of routes on these images, without training them, in one pass.
        """
        return drawn

    def divergence(self, given: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """The loss of `given` logits `[B, num_classes]` of a further route, taught by those of the first, `wanted`."""
        given, wanted = F.log_softmax(given, dim=1), F.log_softmax(wanted, dim=1)
        return F.kl_div(given, wanted, reduction="batchmean", log_target=True)

    def observe(self, routes: Iterable[int], sensitivity: Callable[[int], torch.Tensor]) -> None:  # noqa: B027
        """Learn from the gradients of a step; called on every rank once these are exchanged.

        Args:
            routes: The first route of each rank, in the order of ranks.
            sensitivity: Mean over the parameters of a route of abs(gradient * weight), a scalar.
        """

    def kept(self) -> Mapping[str, torch.Tensor]:
        """Tensors by name that `observe` or `drop` change in place, alike on all ranks; checkpoints keep them."""
        return {"left": torch.from_numpy(self.left)} if self.settings.focus else {}  # of the same memory

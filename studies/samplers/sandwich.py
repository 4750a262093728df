"""The sandwich rule: the costliest anchor learns from labels; the cheapest route and two random ones from it."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from stitchkit.training.samplers import CostBins
from studies.samplers.replay import ReplayTask

RANDOM = 2


class Sandwich(CostBins):
    """Draws several routes for each step.

    A stitch may cost a little more than the costliest anchor; but its joint has yet to learn, so the anchor is the
    better teacher. The costliest route takes its place where anchors are not trained.

    Source: the sandwich rule of universally slimmable networks (Yu and Huang, 2019).
    """

    @property
    def ends(self) -> tuple[int, int]:
        """The teacher and the cheapest route."""
        anchors = [*self.costs.keys() & {*self.anchors}]
        return max(anchors or self.cfg_ids, key=self.costs.__getitem__), min(self.cfg_ids, key=self.costs.__getitem__)

    def routes(self, step: int, rank: int) -> tuple[int, ...]:
        """The teacher, the cheapest route and the random ones; each only once."""
        random = self.random(step, rank)
        others = [int(random.choice(self.bin(random))) for _ in range(RANDOM)]
        return tuple(dict.fromkeys((*self.ends, *others)))


class SandwichTask(ReplayTask):
    """Trains the routes of `Sandwich`: the first by labels and its teacher, the others by its logits.

    A further anchor with a copy learns from that copy. The loss is the sum over the routes.
    """

    sampler: Sandwich

    def draw(self, step: int, rank: int) -> tuple[int, ...]:
        """All routes of a step; they have an anchor wherever `Replay` would draw one."""
        return self.sampler.routes(step, rank)

    def forward(self, images: torch.Tensor, labels: torch.Tensor, *routes: int) -> dict[str, torch.Tensor]:
        """As in `ReplayTask`, with the losses of further routes."""
        first, taught = super().forward(images, labels, *routes[:1]), routes[1:]
        loss = first["loss"]
        for route in taught:
            wanted = first["output"].detach()
            if self.replay is not None and route in self.replay.anchors:
                wanted = self.replay(images, route)
            loss = loss + _divergence(self._logits(images, route), wanted)
        return {**first, "loss": loss}

    def _logits(self, images: torch.Tensor, route: int) -> torch.Tensor:
        output = self.trainable_module(images, route)
        logits: torch.Tensor = output[0] if isinstance(output, tuple) else output
        return logits


def _divergence(given: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """The Kullback-Leibler divergence of logits `[B, num_classes]`."""
    given, wanted = F.log_softmax(given, dim=1), F.log_softmax(wanted, dim=1)
    return F.kl_div(given, wanted, reduction="batchmean", log_target=True)

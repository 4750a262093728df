"""Best of a few: of three routes of one cost, a step trains the one that its images suit best."""

from __future__ import annotations

import torch

from stitchkit.model.onepass import OnePass
from stitchkit.model.snnet import SNNet
from stitchkit.networks.mode import evaluating
from stitchkit.training.objective import RouteOutputs, StepBatch
from stitchkit.training.samplers import CostBins
from studies.samplers.replay import SECOND, ReplayTask

_ROUTES = 3


class BestOf(CostBins):
    """Draws a few routes of one bin.

    Source: AttentiveNAS (Wang et al., 2021), its BestUp with the loss as the measure.
    """

    def routes(self, step: int, rank: int) -> tuple[int, ...]:
        """Different routes of a bin, or all of a smaller one."""
        random = self.random(step, rank)
        members = self.bin(random)
        return tuple(random.choice(members, size=min(_ROUTES, len(members)), replace=False).tolist())


class BestOfTask(ReplayTask):
    """Trains the route with the lowest loss among those of `BestOf`; for networks without batch norms."""

    sampler: BestOf

    def draw(self, step: int, rank: int) -> tuple[int, ...]:
        """The routes to choose from; with `Replay`, the anchors of a second draw if the first has none."""
        first = self.sampler.routes(step, rank)
        if self.replay is None or not self.replay.anchors.keys().isdisjoint(first):
            return first
        second = self.sampler.routes(step + SECOND, rank)
        return tuple(route for route in second if route in self.replay.anchors) or first

    def forward(self, images: torch.Tensor, labels: torch.Tensor, *routes: int) -> dict[str, torch.Tensor]:
        """As in `ReplayTask`, for the best of some routes."""
        return super().forward(images, labels, *((self.best(routes, images, labels),) if routes[1:] else routes))

    @torch.no_grad()
    def best(self, routes: tuple[int, ...], images: torch.Tensor, labels: torch.Tensor) -> int:
        """The route with the lowest loss by labels; dropout and stochastic depth, which compare luck, are off."""
        network = self.network
        assert isinstance(network, SNNet), "it has routes"
        with evaluating(network):
            logits = OnePass(network, routes).at_once(images)
            batch = StepBatch(images, labels)
            losses = [self.criterion(route, RouteOutputs(logits[route]), batch).float().item() for route in routes]
        return routes[losses.index(min(losses))]

"""Replay: anchors are drawn about twice as often, and learn from copies of themselves before the training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from stitchkit.model.snnet import SNNet
from stitchkit.networks.slices import extract
from stitchkit.settings.stitch_recipe import StitchRecipe
from stitchkit.training.objective import Objective, RouteOutputs, StepBatch, Term, divergence
from stitchkit.training.task import StitchTask

SECOND = 1 << 40
"""Added to a step for its second draw; no training has so many steps."""


class Replay(nn.Module):
    """Draws anchors more often, and teaches each by its copy from an SN-Net that is not trained yet."""

    def __init__(self, model: SNNet, settings: StitchRecipe):
        super().__init__()
        self.settings = settings
        numbers = {label: number for number, label in enumerate(model.views)}
        # The number of the copy of each uncut anchor, by `cfg_id`.
        uncut = [cfg_id for cfg_id in model.space.ids if model.space[cfg_id].is_anchor]
        self.anchors = {cfg_id: numbers[model.space[cfg_id].segments[0].anchor] for cfg_id in uncut}
        self.copies = nn.ModuleList(extract(anchor) for anchor in model.anchors).eval().requires_grad_(False)

    def draw(self, draw: Callable[[int, int], int], step: int, rank: int) -> int:
        """The route of a step, given the draws of a sampler: the first of two, or the second if only that is an anchor.

        A share p of draws of anchors becomes 2p - p * p, whatever the sampler, and stays a function of the step.
        """
        first, second = draw(step, rank), draw(step + SECOND, rank)
        return second if second in self.anchors and first not in self.anchors else first

    @torch.no_grad()
    def forward(self, images: torch.Tensor, cfg_id: int) -> torch.Tensor:
        """Logits `[B, num_classes]` of the copy of an uncut anchor for images `[B, C, H, W]`."""
        logits: torch.Tensor = self.copies[self.anchors[cfg_id]](images)
        return logits

    def divergence(self, route: int | None, outputs: RouteOutputs, batch: StepBatch) -> torch.Tensor:
        """The divergence of an anchor from its copy, a scalar."""
        assert route is not None, "anchors are routes"
        # A copy in evaluation mode gives the mean of both if the network is a distilled one.
        logits = (outputs.main + (outputs.others or (outputs.main,))[0]) / 2
        return divergence(logits, self(batch.images, route), self.settings.distillation_tau)


class ReplayTask(StitchTask):
    """A task that a `Replay` teaches, if it has one, in place of the teacher.

    Share and temperature of its loss are those of the teacher.
    """

    def __init__(self, *arguments: Any, replay: Replay | None = None, **options: Any):
        super().__init__(*arguments, **options)
        self.replay = replay
        if replay is not None:
            labels, alpha = self.criterion.terms[0], replay.settings.distillation_alpha
            self.replayed = Objective(replace(labels, weight=1 - alpha), Term(replay.divergence, alpha))

    def draw(self, step: int, rank: int) -> tuple[int, ...]:
        """The route that `Replay` draws, or the sampler."""
        drawn = super().draw(step, rank)
        if self.replay is None or self.sampler is None:
            return drawn
        return (self.replay.draw(self.sampler.draw, step, rank),)

    def train(self, mode: bool = True) -> ReplayTask:
        """Set the mode; copies stay in evaluation mode."""
        super().train(mode)
        if self.replay is not None:
            self.replay.eval()
        return self

    def forward(self, images: torch.Tensor, labels: torch.Tensor, *routes: int) -> dict[str, torch.Tensor]:
        """As in `StitchTask`; an anchor with a copy learns from labels and from that."""
        is_replayed = self.replay is not None and routes and routes[0] in self.replay.anchors
        return self.learn(self.replayed if is_replayed else self.criterion, images, labels, *routes)

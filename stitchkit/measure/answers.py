"""Scores as they judge batches; of answers: logits against labels, or against those of the end anchor."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from stitchkit.measure.scores import AccuracyScore, AgreementScore, Score

SURE = 0.5
"""The least probability of a sure answer."""


class Sums(NamedTuple):
    """What a network gives for a batch: `totals` in float64 `[T]`, and for each image `own` `[B, own]`.

    The `truth` `[B, truth]` is the same for all networks. All are as the score says.
    """

    totals: torch.Tensor
    own: torch.Tensor
    truth: torch.Tensor


class BatchScore(Score):
    """A score that judges what networks give for batches."""

    @abstractmethod
    def of_batch(self, output: Any, targets: Any) -> Sums:
        """What a network's output for a batch is worth by the targets."""


class Accuracy(AccuracyScore, BatchScore):
    """Judges logits by labels."""

    def of_batch(self, output: torch.Tensor, targets: torch.Tensor) -> Sums:
        """What logits `[B, num_classes]` are worth by labels `[B]`; label -1 is an image that does not count."""
        logits = output.float()  # autocast's logits have too few digits for a mean of losses
        hits = logits.topk(min(5, logits.shape[1]), dim=1).indices == targets[:, None]
        loss = F.cross_entropy(logits, targets, reduction="sum", ignore_index=-1)
        return Sums(torch.stack([loss, hits.sum()]).double(), hits[:, :1], targets[:, None])


class AnswerAgreement(AgreementScore, BatchScore):
    """Judges logits by those of the end anchor; an answer is right if it is the anchor's."""

    def of_batch(self, output: tuple[torch.Tensor, torch.Tensor], targets: torch.Tensor) -> Sums:
        """What the logits of a stitch are worth by those of its anchor, `[B, num_classes]`.

        Label -1 is an image that does not count, and 0 one that does.
        """
        ours, theirs = (each.float().log_softmax(1) for each in output)
        known = targets >= 0
        equal = (ours.argmax(1) == theirs.argmax(1)) & known
        sure = (theirs.amax(1).exp() >= SURE) & known
        kl = F.kl_div(ours, theirs, reduction="none", log_target=True).sum(1)[known].sum()
        return Sums(torch.stack([kl, (equal & sure).sum(), sure.sum()]).double(), equal[:, None], targets[:, None])

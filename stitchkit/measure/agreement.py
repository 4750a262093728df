"""How far two networks agree on the same images: their features, or their answers."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn import functional as F

from stitchkit.errors import InputError
from stitchkit.model.similarity import linear_cka


class Agreement(NamedTuple):
    """Agreement in percent; 100 is equal.

    Args:
        cosine: Mean over the images of the cosine between the two features; negative if most are opposed.
        cka: Linear centred kernel alignment, which rotation and scale do not change.
    """

    cosine: float
    cka: float


def agreement(x: torch.Tensor, y: torch.Tensor) -> Agreement:
    """The agreement of two features `[B, C]` of the same images; the cosine of a feature of zeros is 0."""
    cosine = F.cosine_similarity(x.double(), y.double(), dim=1).mean().item()
    return Agreement(100 * min(1.0, cosine), 100 * linear_cka(x, y))


SURE = 0.5
"""The least probability of a sure answer."""


class AnswerAgreement(NamedTuple):
    """How far a stitch's answers agree with those of its end anchor.

    Args:
        agree: Images with the same answer, in percent.
        agree_sure: The same among images where the anchor is sure; None if there are none.
        kl: Mean Kullback-Leibler divergence of the stitch's probabilities from the anchor's.
        sure_images: Number of images where the anchor is sure.
    """

    agree: float
    agree_sure: float | None
    kl: float
    images: int
    sure_images: int

    @classmethod
    def of(cls, kl: float, equal: float, _: float, images: float, equal_sure: float, sure: float) -> AnswerAgreement:
        """From the sums of `compare_answers` over all images."""
        if not images:
            raise InputError("there is no image to evaluate on; check the validation set")
        return cls(100 * equal / images, 100 * equal_sure / sure if sure else None, kl / images, int(images), int(sure))

    @property
    def figures(self) -> dict[str, float]:
        """The figures of a row in a ledger."""
        return {name: value for name, value in self._asdict().items() if value is not None}


def compare_answers(
    logits: tuple[torch.Tensor, torch.Tensor], labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sums over a batch for `AnswerAgreement.of`, and which answers are equal, `[B]`.

    They have the form of `evaluate.Answers` with one class: the images where the anchor is sure. The logits are of the
    stitch and of the anchor, `[B, num_classes]`; label -1 is an image that does not count.
    """
    ours, theirs = (each.float().log_softmax(1) for each in logits)
    known = labels >= 0
    equal = (ours.argmax(1) == theirs.argmax(1)) & known
    sure = (theirs.amax(1).exp() >= SURE) & known
    kl = F.kl_div(ours, theirs, reduction="none", log_target=True).sum(1)[known].sum()
    sums = [kl, equal.sum(), equal.sum(), known.sum(), (equal & sure).sum(), sure.sum()]
    return torch.stack(sums).double(), equal


def equal_answers(logits: torch.Tensor, reference: torch.Tensor) -> float:
    """The share of images, or pixels, in percent, with the same class in two networks' logits `[B, classes, ...]`."""
    return 100 * (logits.argmax(1) == reference.argmax(1)).float().mean().item()

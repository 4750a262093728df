"""How far two networks agree on the same images: their features, or their answers."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn import functional as F

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


def equal_answers(logits: torch.Tensor, reference: torch.Tensor) -> float:
    """The share of images, or pixels, in percent, with the same class in two networks' logits `[B, classes, ...]`."""
    return 100 * (logits.argmax(1) == reference.argmax(1)).float().mean().item()

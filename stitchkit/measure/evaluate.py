"""The accuracy and loss of a network on a validation set, each image counted exactly once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from stitchkit.distributed import sum_over_ranks
from stitchkit.errors import InputError
from stitchkit.networks.mode import evaluating


class Score(NamedTuple):
    """The result of an evaluation.

    Args:
        acc1: Top-1 accuracy in percent.
        acc5: Top-5 accuracy in percent; with fewer than five classes, all of them count.
        loss: Mean cross-entropy.
        images: Number of images counted.
    """

    acc1: float
    acc5: float
    loss: float
    images: int


class Tally:
    """Sums over images, which give the scores of several networks.

    Args:
        count: Number of networks.
        device: Device of the sums.
    """

    def __init__(self, count: int, device: torch.device):
        # For each network: loss, top-1 hits, top-5 hits, images. They stay on the device: reading one would make the
        # host wait for every batch. In float64, a sum of millions of losses keeps its digits, whatever the batch size.
        self.sums = torch.zeros(count, 4, dtype=torch.float64, device=device)

    def add(self, number: int, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """Add the logits `[B, num_classes]` of one network for a batch; images with label -1 are not counted."""
        logits = logits.float()  # autocast's logits have too few digits for a mean of losses
        hits = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
        loss = F.cross_entropy(logits, labels, reduction="sum", ignore_index=-1)
        self.sums[number] += torch.stack([loss, hits[:, 0].sum(), hits.sum(), (labels >= 0).sum()])

    def scores(self) -> list[Score]:
        """The scores over the images of all ranks.

        Raises:
            InputError: If there is no image on any rank.
        """
        found = []
        for loss, top1, top5, count in sum_over_ranks(self.sums.clone()).tolist():
            if not count:
                raise InputError("there is no image to evaluate on; check the validation set")
            found.append(Score(100 * top1 / count, 100 * top5 / count, loss / count, int(count)))
        return found


@torch.no_grad()
def evaluate_stitch(
    model: nn.Module,
    cfg_id: int | None,
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    *,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Score:
    """Accuracy and loss over the batches of all ranks, of one stitch of an SN-Net, or of a plain model with None.

    Args:
        model: Images `[B, C, H, W]` to logits `[B, num_classes]`; its mode is restored.
        cfg_id: The stitch.
        batches: Images and labels `[B]` of this rank, without padding: every image of the set is in exactly one
            batch of one rank.
        device: Device of the sums.
        autocast: Makes the context in which the network runs.

    Raises:
        InputError: If there is no image on any rank.
    """
    tally = Tally(1, device)
    with evaluating(model):
        for images, labels in batches:
            with autocast():
                logits = model(images) if cfg_id is None else model(images, cfg_id)
            tally.add(0, logits, labels)
    return tally.scores()[0]

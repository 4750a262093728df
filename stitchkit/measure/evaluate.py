"""How well one stitch does on a validation set, each image counted exactly once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from stitchkit.distributed import sum_over_ranks
from stitchkit.errors import InputError
from stitchkit.model.mode import evaluating


class Score(NamedTuple):
    """What an evaluation found.

    Args:
        acc1: Top-1 accuracy in percent.
        acc5: Top-5 accuracy in percent; with fewer than five classes, among all of them.
        loss: Mean cross-entropy.
        images: Number of images counted.
    """

    acc1: float
    acc5: float
    loss: float
    images: int


@torch.no_grad()
def evaluate(
    network: Callable[[torch.Tensor], torch.Tensor],
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    *,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Score:
    """Accuracy and loss over the batches of all ranks.

    Args:
        network: Images `[B, C, H, W]` to logits `[B, num_classes]`, in evaluation mode.
        batches: Images and labels `[B]` of this rank, without padding: every image of the set is in one batch of
            one rank.
        device: Where the sums are kept.
        autocast: Makes the context in which the network runs.

    Raises:
        InputError: If there is no image on any rank.
    """
    # loss, top-1 hits, top-5 hits, images; on the device, so that no batch waits for the one before it
    sums = torch.zeros(4, dtype=torch.float64, device=device)
    for images, labels in batches:
        with autocast():
            logits = network(images)
        logits = logits.float()
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
        sums[0] += F.cross_entropy(logits, labels, reduction="sum")
        sums[1] += best[:, 0].sum()
        sums[2] += best.sum()
        sums[3] += len(labels)
    loss, top1, top5, count = sum_over_ranks(sums).tolist()
    if not count:
        raise InputError("there is no image to evaluate on; check the validation set")
    return Score(100 * top1 / count, 100 * top5 / count, loss / count, int(count))


def evaluate_stitch(
    model: nn.Module,
    cfg_id: int | None,
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    *,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Score:
    """`evaluate` for one stitch of an SN-Net, or with None for a plain model; the model's mode is kept."""
    with evaluating(model):
        network = model if cfg_id is None else lambda images: model(images, cfg_id)
        return evaluate(network, batches, device=device, autocast=autocast)

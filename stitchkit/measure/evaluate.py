"""The accuracy and loss of a network on a validation set, each image counted exactly once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from stitchkit.data.batches import Batch, Loader, without_padding
from stitchkit.data.unreadable import report
from stitchkit.distributed import World, sum_over_ranks
from stitchkit.errors import InputError
from stitchkit.files import write_text
from stitchkit.networks.mode import evaluating
from stitchkit.progress import progress


class Score(NamedTuple):
    """Accuracies in percent, mean cross-entropy, and the number of images that count in them.

    With fewer than five classes, all of them count as the top five.
    """

    acc1: float
    acc5: float
    loss: float
    images: int


class PartialSums:
    """A small file with the sums over finished batches; it is always complete or absent.

    Args:
        path: The file of this rank.
        of: Everything that the sums depend on, as plain data; saved sums of anything else are ignored.
    """

    def __init__(self, path: Path, of: Mapping[str, object]):
        self.path = path
        self._of = json.loads(json.dumps(of))  # as it is read back, with lists for tuples

    def restore(self, sums: torch.Tensor) -> int:
        """Copy the saved sums into `sums`, and return the number of batches that they cover; 0 if there are none."""
        try:
            content = json.loads(self.path.read_text())
            of, batches = content["of"], int(content["batches"])
            saved = torch.tensor(content["sums"], dtype=sums.dtype)
        except Exception:  # a damaged file can hold anything; the evaluation then starts over
            return 0
        if of != self._of or saved.shape != sums.shape:
            return 0
        sums.copy_(saved)
        return batches

    def save(self, sums: torch.Tensor, batches: int) -> None:
        """Save the sums over the first `batches` batches, replacing earlier ones."""
        # JSON writes a float64 by its repr, which is exact: a resumed evaluation ends with the same last digit.
        write_text(self.path, json.dumps({"of": self._of, "batches": batches, "sums": sums.tolist()}))

    def remove(self) -> None:
        """Remove the file of a finished evaluation."""
        self.path.unlink(missing_ok=True)


def batches_of(
    loader: Loader, world: World, what: str, after_batch: Callable[[], None] = lambda: None
) -> Iterator[Batch]:
    """The batches of this rank, each image once over all ranks, under a progress bar; unreadable ones are reported.

    `after_batch` is called equally often on all ranks.
    """
    yield from progress(without_padding(loader, world, after_batch), world, what, unit="batch", total=len(loader))
    report(loader.dataset)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    run: Callable[[torch.Tensor], Iterable[torch.Tensor]],
    batches: Iterable[Batch],
    *,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
    count: int = 1,
    partial: PartialSums | None = None,
) -> list[Score]:
    """Accuracy and loss over the batches of all ranks, of one or more networks that judge the same images.

    Args:
        model: What the networks are of; its mode is restored.
        run: Images `[B, C, H, W]` to the logits `[B, num_classes]` of each network.
        batches: Images and labels `[B]` of this rank, without padding: every image of the set is in exactly one
            batch of one rank.
        device: Device of the sums.
        autocast: Makes the context in which the networks run.
        count: Number of networks.
        partial: Keeps the sums after each batch, and has those of an evaluation that was killed.
    """
    # For each network: loss, top-1 hits, top-5 hits, images. They stay on the device: reading one would make the host
    # wait for every batch. In float64, a sum of millions of losses keeps its digits, whatever the batch size.
    sums = torch.zeros(count, 4, dtype=torch.float64, device=device)
    done = partial.restore(sums) if partial else 0
    with evaluating(model):
        for number, (images, labels) in enumerate(batches):
            if number < done:  # read, not skipped: what a loader makes of an image may depend on those before
                continue
            with autocast():
                logits = run(images)
            for network, found in enumerate(logits):
                sums[network] += _sums(found, labels)
            if partial:
                partial.save(sums, number + 1)
    return [_score(*each) for each in sum_over_ranks(sums).tolist()]


def _sums(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Loss, top-1 hits, top-5 hits and images of a batch; images with label -1 are not counted."""
    logits = logits.float()  # autocast's logits have too few digits for a mean of losses
    hits = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
    loss = F.cross_entropy(logits, labels, reduction="sum", ignore_index=-1)
    return torch.stack([loss, hits[:, 0].sum(), hits.sum(), (labels >= 0).sum()])


def _score(loss: float, top1: float, top5: float, images: float) -> Score:
    if not images:
        raise InputError("there is no image to evaluate on; check the validation set")
    return Score(100 * top1 / images, 100 * top5 / images, loss / images, int(images))


def evaluate_stitch(
    model: nn.Module,
    cfg_id: int | None,
    batches: Iterable[Batch],
    *,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Score:
    """The score of one stitch of an SN-Net, or with None of a plain model; the rest is as in `evaluate`."""

    def run(images: torch.Tensor) -> list[torch.Tensor]:
        return [model(images) if cfg_id is None else model(images, cfg_id)]

    return evaluate(model, run, batches, device=device, autocast=autocast)[0]

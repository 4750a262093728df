"""The accuracy and loss of a network on a validation set, each image counted exactly once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import nn
from torch.nn import functional as F

from stitchkit.data.batches import Batch, Loader, without_padding
from stitchkit.data.unreadable import report
from stitchkit.distributed import World, sum_over_ranks
from stitchkit.errors import InputError
from stitchkit.files import replacing
from stitchkit.networks.mode import evaluating
from stitchkit.progress import progress
from stitchkit.settings.files import unique_keys


class Score(NamedTuple):
    """Accuracies in percent, mean cross-entropy, and the number of images that count in them.

    With fewer than five classes, all of them count as the top five.

    Args:
        class_hits: Correctly predicted images of each class; empty if classes were not counted.
        class_images: Images of each class.
    """

    acc1: float
    acc5: float
    loss: float
    images: int
    class_hits: tuple[int, ...] = ()
    class_images: tuple[int, ...] = ()

    @property
    def class_acc1(self) -> list[float | None]:
        """Accuracy of each class; None for a class without images."""
        pairs = zip(self.class_hits, self.class_images, strict=True)
        return [100 * hits / images if images else None for hits, images in pairs]

    @property
    def figures(self) -> dict[str, float]:
        """The figures of a row in a ledger; balanced accuracy is the mean over the classes that have images."""
        found = [share for share in self.class_acc1 if share is not None]
        balanced = {"balanced_acc1": sum(found) / len(found)} if found else {}
        return {"acc1": self.acc1, **balanced, "acc5": self.acc5, "loss": self.loss, "images": self.images}


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
            with safe_open(self.path, framework="pt") as file:
                about = json.loads(file.metadata()["about"], object_pairs_hook=unique_keys)
                saved = file.get_tensor("sums")
            of, batches = about["of"], int(about["batches"])
        except Exception:  # a damaged file can hold anything; the evaluation then starts over
            return 0
        if of != self._of or saved.shape != sums.shape or saved.dtype != sums.dtype:
            return 0
        sums.copy_(saved)
        return batches

    def save(self, sums: torch.Tensor, batches: int) -> None:
        """Save the sums over the first `batches` batches, replacing earlier ones."""
        about = json.dumps({"of": self._of, "batches": batches})
        with replacing(self.path) as draft:
            draft.write_bytes(save({"sums": sums}, metadata={"about": about}))

    def remove(self) -> None:
        """Remove the file of a finished evaluation."""
        self.path.unlink(missing_ok=True)


def batches_of(
    loader: Loader, world: World, what: str, after_batch: Callable[[], None] = lambda: None
) -> Iterator[Batch]:
    """The batches of this rank, each image once over all ranks, under a progress bar; unreadable ones are reported.

    `after_batch` is called equally often on all ranks.
    """
    images = len(loader.dataset) / max(len(loader), 1)
    batches = without_padding(loader, world, after_batch)
    yield from progress(batches, world, what, unit="batches", total=len(loader), images=images)
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
    num_classes: int = 0,
    partial: PartialSums | None = None,
) -> list[Score]:
    """Accuracy and loss over the batches of all ranks, of one or more networks that judge the same images.

    Args:
        model: The module that the networks belong to; its mode is restored.
        run: Images `[B, C, H, W]` to the logits `[B, num_classes]` of each network.
        batches: Images and labels `[B]` of this rank, without padding: every image of the set is in exactly one
            batch of one rank.
        device: Device of the sums.
        autocast: Makes the context in which the networks run.
        count: Number of networks.
        num_classes: Number of classes that are counted separately; 0 for none.
        partial: Saves the sums after each batch, and restores those of a killed evaluation.
    """
    # For each network: loss, top-1 hits, top-5 hits, images; then hits and images of each class. They stay on the
    # device: reading one would make the host wait for every batch. In float64, a sum of millions of losses keeps its
    # digits, whatever the batch size.
    sums = torch.zeros(count, 4 + 2 * num_classes, dtype=torch.float64, device=device)
    done = partial.restore(sums) if partial else 0
    with evaluating(model):
        for number, (images, labels) in enumerate(batches):
            if number < done:  # read, not skipped: what a loader makes of an image may depend on those before
                continue
            with autocast():
                logits = run(images)
            for network, found in enumerate(logits):
                sums[network] += _sums(found, labels, num_classes)
            if partial:
                partial.save(sums, number + 1)
    return [_score(*each) for each in sum_over_ranks(sums).tolist()]


def _sums(logits: torch.Tensor, labels: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Loss, top-1 hits, top-5 hits and images of a batch, then hits and images of each class.

    Images with label -1 are not counted.
    """
    logits = logits.float()  # autocast's logits have too few digits for a mean of losses
    hits = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
    loss = F.cross_entropy(logits, labels, reduction="sum", ignore_index=-1)
    right, known = hits[:, 0], labels >= 0
    whole = torch.stack([loss, right.sum(), hits.sum(), known.sum()]).double()
    if not num_classes:
        return whole
    each = torch.stack([right, known]).double()  # label -1 becomes class 0, to which it adds 0 hits and 0 images
    return torch.cat([whole, whole.new_zeros(2, num_classes).index_add_(1, labels.clamp(min=0), each).flatten()])


def _score(loss: float, top1: float, top5: float, images: float, *each: float) -> Score:
    if not images:
        raise InputError("there is no image to evaluate on; check the validation set")
    hits, counts = (tuple(map(int, part)) for part in (each[: len(each) // 2], each[len(each) // 2 :]))
    return Score(100 * top1 / images, 100 * top5 / images, loss / images, int(images), hits, counts)


def evaluate_stitch(
    model: nn.Module,
    cfg_id: int | None,
    batches: Iterable[Batch],
    *,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
    num_classes: int = 0,
) -> Score:
    """The score of one stitch of an SN-Net, or of a plain model if `cfg_id` is None; else as in `evaluate`."""

    def run(images: torch.Tensor) -> list[torch.Tensor]:
        return [model(images) if cfg_id is None else model(images, cfg_id)]

    return evaluate(model, run, batches, device=device, autocast=autocast, num_classes=num_classes)[0]

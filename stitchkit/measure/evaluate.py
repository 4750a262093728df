"""What networks answer to a validation set, and their accuracy and loss on it, each image counted exactly once."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import nn
from torch.nn import functional as F

from stitchkit.data.batches import Batch, Loader, without_padding
from stitchkit.data.unreadable import report
from stitchkit.distributed import World, gather_objects, sum_over_ranks
from stitchkit.errors import InputError
from stitchkit.files import check_regular, replacing
from stitchkit.networks.mode import evaluating
from stitchkit.progress import progress
from stitchkit.settings.files import unique_keys

SAVE_EVERY = 5.0
"""Seconds between two saves of unfinished answers, which are the most that a killed evaluation computes again."""


class Score(NamedTuple):
    """Accuracies in percent, mean cross-entropy, and the number of images that count in them.

    With fewer than five classes, all of them count as the top five. The figures of each class may be empty.
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
        shares = [share for share in self.class_acc1 if share is not None]
        balanced = {"balanced_acc1": sum(shares) / len(shares)} if shares else {}
        return {"acc1": self.acc1, **balanced, "acc5": self.acc5, "loss": self.loss, "images": self.images}


@dataclass(frozen=True, eq=False)
class Answers:
    """What networks answer to images: sums over the images, and each single answer.

    Args:
        sums: For each network the loss, top-1 hits, top-5 hits and images, then hits and images of each class,
            `[networks, 4 + 2 * num_classes]`; in float64, a sum of millions of losses keeps its digits.
        right: Whether the most likely class is the label, `[networks, images]`.
        labels: `[images]`; -1 is an image that does not count.
    """

    sums: torch.Tensor
    right: torch.Tensor
    labels: torch.Tensor

    @classmethod
    def none(cls, networks: int, num_classes: int, device: torch.device | None = None) -> Answers:
        """Those to no image."""
        sums = torch.zeros(networks, 4 + 2 * num_classes, dtype=torch.float64, device=device)
        right = torch.zeros(networks, 0, dtype=torch.bool, device=device)
        return cls(sums, right, torch.zeros(0, dtype=torch.int64, device=device))

    def __add__(self, others: Answers) -> Answers:
        """Those of the same networks to these images and to others."""
        right = torch.cat([self.right, others.right], dim=1)
        return Answers(self.sums + others.sums, right, torch.cat([self.labels, others.labels]))

    def in_order(self, numbers: Sequence[int]) -> Answers:
        """The same in the order of the numbers of the images."""
        order = torch.tensor(numbers).argsort()
        return Answers(self.sums, self.right[:, order], self.labels[order])

    def of_all_ranks(self) -> Answers:
        """Those of all ranks, on the CPU of each, in the order of the set: rank r has the images r, r + size, ..."""
        sums = sum_over_ranks(self.sums.clone()).cpu()
        parts = gather_objects(_packed(self))
        right, labels = (torch.cat(tensors, dim=-1) for tensors in zip(*map(_unpacked, parts), strict=True))
        numbers = [rank + turn * len(parts) for rank, (_, own) in enumerate(parts) for turn in range(len(own))]
        return Answers(sums, right, labels).in_order(numbers)

    @property
    def scores(self) -> list[Score]:
        """The score of each network."""
        return [_score(*each) for each in self.sums.tolist()]


def _packed(answers: Answers) -> tuple[torch.Tensor, torch.Tensor]:
    """Eight answers in a byte, `[networks, bytes]`, and the labels."""
    return torch.from_numpy(np.packbits(answers.right.cpu().numpy(), axis=1)).contiguous(), answers.labels.cpu()


def _unpacked(packed: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """The answers `[networks, images]`, and the labels."""
    bits, labels = packed
    return torch.from_numpy(np.unpackbits(bits.numpy(), axis=1, count=len(labels)).astype(bool)), labels


class PartialAnswers:
    """A small file with a rank's answers to finished batches; it is always complete or absent.

    Answers that depend on anything else than `of`, plain data, are ignored.
    """

    def __init__(self, path: Path, of: Mapping[str, object]):
        self.path = path
        self._of = json.loads(json.dumps(of))  # as it is read back, with lists for tuples

    def restore(self, num_classes: int, networks: int) -> tuple[Answers, int] | None:
        """The saved answers of these networks, on the CPU, and the number of batches; None if there are none."""
        try:
            check_regular(self.path)
            with safe_open(self.path, framework="pt") as file:
                about = json.loads(file.metadata()["about"], object_pairs_hook=unique_keys)
                sums, right, labels = (file.get_tensor(name) for name in ("sums", "right", "labels"))
            of, done = about["of"], about["done"]
            answers = Answers(sums, *_unpacked((right, labels)))
            known = (labels >= 0).sum().expand(len(sums))
            counts = torch.stack([answers.right.sum(1), known], dim=1)
            is_whole = type(done) is int and done > 0 and sums.shape == (networks, 4 + 2 * num_classes)
            is_whole &= right.shape[1] == -(-len(labels) // 8)  # NumPy makes up the bits of missing bytes
            is_whole &= (sums.dtype, labels.dtype, labels.ndim) == (torch.float64, torch.int64, 1)
            is_whole &= torch.equal(sums[:, [1, 3]], counts.double())
        except Exception:  # a damaged file can hold anything; the evaluation then starts over
            return None
        return (answers, done) if of == self._of and is_whole else None

    def save(self, answers: Answers, done: int) -> None:
        """Save the answers to so many batches, replacing earlier ones."""
        bits, labels = _packed(answers)
        about = json.dumps({"of": self._of, "done": done})
        with replacing(self.path) as draft:
            draft.write_bytes(save({"sums": answers.sums, "right": bits, "labels": labels}, metadata={"about": about}))

    def remove(self) -> None:
        """Remove the file of a finished evaluation."""
        self.path.unlink(missing_ok=True)


def batches_of(
    loader: Loader, world: World, what: str, after_batch: Callable[[], None] = lambda: None
) -> Iterator[Batch]:
    """The batches of this rank under a progress bar, each image once over all ranks; unreadable ones are reported."""
    images = len(loader.dataset) / max(len(loader), 1)
    batches = without_padding(loader, world, after_batch)
    yield from progress(batches, world, what, unit="batches", total=len(loader), images=images)
    report(loader.dataset)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    run: Callable[[torch.Tensor], Iterable[Any]],
    batches: Iterable[Batch],
    *,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
    count: int = 1,
    num_classes: int = 0,
    partial: PartialAnswers | None = None,
    judge: Callable[[Any, torch.Tensor], tuple[torch.Tensor, torch.Tensor]] | None = None,
) -> Answers:
    """The answers of one or more networks that judge the same images, to those of this rank.

    Args:
        model: The module that the networks belong to; its mode is restored.
        run: Images `[B, C, H, W]` to the logits `[B, num_classes]` of each network.
        batches: Of this rank, without padding: every image of the set is in exactly one batch of one rank.
        num_classes: Number of classes that are counted separately; 0 for none.
        partial: Saves the answers, after a batch every `SAVE_EVERY` seconds, and restores those of a killed evaluation.
        judge: What `run` gives of a network and labels to its sums over the batch, as in `Answers`, and whether it is
            right, `[B]`; by default from its logits.
    """
    judge = judge or functools.partial(_sums, num_classes=num_classes)
    # They stay on the device until they are saved: reading one makes the host wait.
    answers, done, next_save = Answers.none(count, num_classes, device), 0, 0.0
    if restored := partial and partial.restore(num_classes, count):
        saved, done = restored
        answers += Answers(saved.sums.to(device), saved.right.to(device), saved.labels.to(device))
    with evaluating(model):
        for number, (images, labels) in enumerate(batches):
            if number < done:  # read, not skipped: what a loader makes of an image may depend on those before
                continue
            with autocast():
                outputs = run(images)
            sums, right = zip(*(judge(output, labels) for output in outputs), strict=True)
            answers += Answers(torch.stack(sums), torch.stack(right), labels)
            if partial and time.monotonic() >= next_save:
                partial.save(answers, number + 1)
                next_save = time.monotonic() + SAVE_EVERY
    return answers


def _sums(logits: torch.Tensor, labels: torch.Tensor, num_classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The sums of a network over a batch, as in `Answers`, and whether it is right, `[B]`."""
    logits = logits.float()  # autocast's logits have too few digits for a mean of losses
    hits = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
    loss = F.cross_entropy(logits, labels, reduction="sum", ignore_index=-1)
    right, known = hits[:, 0], labels >= 0
    whole = torch.stack([loss, right.sum(), hits.sum(), known.sum()]).double()
    if not num_classes:
        return whole, right
    each = torch.stack([right, known]).double()  # label -1 adds 0 hits and 0 images to class 0
    classes = whole.new_zeros(2, num_classes).index_add_(1, labels.clamp(min=0), each)
    return torch.cat([whole, classes.flatten()]), right


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

    answers = evaluate(model, run, batches, device=device, autocast=autocast, num_classes=num_classes)
    return _score(*sum_over_ranks(answers.sums)[0].tolist())

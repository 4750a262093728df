"""What networks answer to a validation set, and their accuracy and loss on it, each image counted exactly once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from stitchkit.data.batches import Batch, Loader, without_padding
from stitchkit.data.unreadable import report
from stitchkit.distributed import World, gather_objects, sum_over_ranks
from stitchkit.errors import InputError
from stitchkit.measure.answers import Accuracy, AnswerAgreement
from stitchkit.measure.per_image import PerImage
from stitchkit.measure.scores import Score
from stitchkit.networks.mode import evaluating
from stitchkit.progress import progress

SAVE_EVERY = 5.0
"""Seconds between two saves of unfinished answers, which are the most that a killed evaluation computes again."""


@dataclass(frozen=True)
class Networks:
    """Networks that run on the same images.

    Args:
        module: What they belong to; its mode is restored.
        run: Images `[B, C, H, W]` to what the score takes of each network, in the order of their `cfg_ids`.
    """

    module: nn.Module
    cfg_ids: Sequence[int]
    run: Callable[[torch.Tensor], Iterable[Any]]


class Unfinished:
    """A small file with what a rank has judged so far; it is always complete or absent.

    What depends on anything else than `of`, plain data, is ignored.
    """

    def __init__(self, path: Path, of: Mapping[str, object]):
        self.path, self._of = path, of

    def restore(self, score: Score, cfg_ids: Sequence[int]) -> PerImage | None:
        """What was saved of these networks; None if there is none."""
        try:
            images = PerImage.read(self.path, of=self._of, file=score.file)
        except InputError:  # no evaluation of the same was killed, or its file is damaged
            return None
        fits = (images.cfg_ids, images.score.about()) == (tuple(cfg_ids), score.about())
        return images if fits and (images.seen == score.counts(images.truth)).all() else None

    def save(self, images: PerImage) -> None:
        """Save what was judged, replacing what was before."""
        images.write(self.path, of=self._of)

    def remove(self) -> None:
        """Remove the file of a finished evaluation."""
        self.path.unlink(missing_ok=True)


def batches_of(
    loader: Loader, world: World, what: str, after_batch: Callable[[], None] = lambda: None, *, done: int = 0
) -> Iterator[Batch]:
    """The batches of this rank under a progress bar, each image once over all ranks; unreadable ones are reported.

    The first `done` images are read, not skipped: what a loader makes of an image may depend on those before.
    """
    images = len(loader.dataset) / max(len(loader), 1)
    batches = without_padding(loader, world, after_batch)
    for batch in progress(batches, world, what, unit="batches", total=len(loader), images=images):
        if done <= 0:
            yield batch
        done -= len(batch[1])
    report(loader.dataset)


@torch.no_grad()
def evaluate(
    networks: Networks,
    batches: Callable[[int], Iterable[Batch]],
    score: Accuracy | AnswerAgreement,
    *,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
    partial: Unfinished | None = None,
) -> PerImage:
    """What networks give on the images of all ranks, in the order of the set: rank r has the images r, r + size, ...

    Args:
        batches: Those of this rank after so many images, without padding: every image of the set is in exactly one
            batch of one rank.
        partial: Saves what was judged, after a batch every `SAVE_EVERY` seconds, and restores that of a killed
            evaluation.
    """
    cfg_ids, next_save = networks.cfg_ids, 0.0
    # They stay on the device until they are saved: reading one makes the host wait.
    totals = torch.zeros(len(cfg_ids), score.totals, dtype=torch.float64, device=device)
    own = [torch.zeros(len(cfg_ids), 0, score.own, dtype=torch.bool, device=device)]
    truths = [torch.zeros(0, score.truth, dtype=torch.int64, device=device)]

    def so_far() -> PerImage:
        values, truth = (torch.cat(parts, dim=-2).cpu().numpy() for parts in (own, truths))
        return PerImage.of_all(cfg_ids, score, values, truth, totals.cpu().numpy())

    if restored := partial and partial.restore(score, cfg_ids):
        assert restored.totals is not None, "unfinished ones have totals"
        totals += torch.from_numpy(restored.totals).to(device)
        own.append(torch.from_numpy(np.array(restored.own)).to(device))
        truths.append(torch.from_numpy(restored.truth).to(device))
    with evaluating(networks.module):
        for images, targets in batches(len(truths[-1])):
            with autocast():
                outputs = networks.run(images)
            every, rights, (truth, *_) = zip(*(score.of_batch(output, targets) for output in outputs), strict=True)
            totals += torch.stack(every)
            own.append(torch.stack(rights))
            truths.append(truth)
            if partial and time.monotonic() >= next_save:
                partial.save(so_far())
                next_save = time.monotonic() + SAVE_EVERY
    parts = gather_objects(so_far())
    numbers = [rank + turn * len(parts) for rank, part in enumerate(parts) for turn in range(len(part.truth))]
    whole = PerImage.joined(parts).in_order(numbers)
    return replace(whole, totals=sum_over_ranks(totals).cpu().numpy())


def evaluate_stitch(
    model: nn.Module,
    cfg_id: int | None,
    batches: Iterable[Batch],
    *,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
    balanced: bool = True,
) -> PerImage:
    """The answers of one stitch of an SN-Net, or of a plain model, as number 0, if `cfg_id` is None.

    The figures have balanced accuracy if they are to; else as in `evaluate`.
    """

    def run(images: torch.Tensor) -> list[torch.Tensor]:
        return [model(images) if cfg_id is None else model(images, cfg_id)]

    networks = Networks(model, [cfg_id or 0], run)
    return evaluate(networks, lambda _: batches, Accuracy(balanced), device=device, autocast=autocast)

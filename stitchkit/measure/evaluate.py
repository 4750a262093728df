"""What networks give on a validation set, and what a score makes of it, each image counted exactly once."""

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
from stitchkit.measure.answers import BatchScore, Sums
from stitchkit.measure.per_image import PerImage
from stitchkit.measure.scores import Score
from stitchkit.networks.mode import evaluating
from stitchkit.progress import progress

SAVE_EVERY = 5.0
"""Seconds between two saves of unfinished results, which are the most that a killed evaluation computes again."""


@dataclass(frozen=True)
class Networks:
    """Networks that run on the same images.

    Args:
        module: What they belong to; its mode is restored.
        run: Images, `[B, C, H, W]` or a list of some of any sizes, to the `cfg_id` of each network and what the score
            takes of it, in any order.
    """

    module: nn.Module
    cfg_ids: Sequence[int]
    run: Callable[[Any], Iterable[tuple[int, Any]]]


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
        return replace(images, score=score) if fits and (images.seen == score.counts(images.truth)).all() else None

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
    batches: Callable[[int], Iterable[tuple[Any, Any]]],
    score: BatchScore,
    *,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
    unfinished: Unfinished | None = None,
) -> PerImage:
    """What networks give on the images of all ranks, in the order of the set: rank r has the images r, r + size, ...

    Args:
        batches: Images and targets of this rank after so many images, without padding: every image of the set is in
            exactly one batch of one rank.
        unfinished: Saves what was judged, after a batch every `SAVE_EVERY` seconds, and restores that of a killed
            evaluation.
    """
    cfg_ids, next_save = networks.cfg_ids, 0.0
    totals = torch.zeros(len(cfg_ids), score.totals, dtype=torch.float64, device=device)
    none = np.zeros((len(cfg_ids), 0, score.own)), np.zeros((0, score.truth), np.int64)
    so_far = (unfinished and unfinished.restore(score, cfg_ids)) or PerImage.of_all(cfg_ids, score, *none)
    if so_far.totals is not None:
        totals += torch.from_numpy(so_far.totals).to(device)
    judged: list[list[Sums]] = []  # they stay on the device until they are saved: reading one makes the host wait

    def joined() -> PerImage:
        parts = [so_far]
        for batch in judged:
            own = torch.stack([sums.own for sums in batch]).cpu().numpy()
            parts.append(PerImage.of_all(cfg_ids, score, own, batch[0].truth.cpu().numpy()))
        judged.clear()
        return replace(PerImage.joined(parts), totals=totals.cpu().numpy())

    with evaluating(networks.module):
        for images, targets in batches(len(so_far.truth)):
            with autocast():  # one network after the other: what they give may be too large to keep together
                each = {cfg_id: score.of_batch(output, targets) for cfg_id, output in networks.run(images)}
            judged.append([each[cfg_id] for cfg_id in cfg_ids])
            totals += torch.stack([sums.totals for sums in judged[-1]])
            if unfinished and time.monotonic() >= next_save:
                so_far = joined()
                unfinished.save(so_far)
                next_save = time.monotonic() + SAVE_EVERY
    whole = joined()
    # Without the score: it may hold functions and tensors of a job, which are the same on every rank.
    arrays = gather_objects({name: getattr(whole, name) for name in ("cfg_ids", "own", "seen", "truth")})
    parts = [replace(whole, **of_rank) for of_rank in arrays]
    numbers = [rank + turn * len(parts) for rank, part in enumerate(parts) for turn in range(len(part.truth))]
    whole = PerImage.joined(parts).in_order(numbers)
    if not score.counts(whole.truth).any():
        raise InputError(score.nothing(len(whole.truth)))
    return replace(whole, totals=sum_over_ranks(totals).cpu().numpy())

"""The batches of a loader: on the device, each image once, or the first few."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, TypeAlias

import torch
from timm.data import Mixup
from timm.data.loader import PrefetchLoader
from torch.utils.data import DataLoader, IterableDataset

from stitchkit.data.loader_processes import outlive_signals
from stitchkit.distributed import World

Batch = tuple[torch.Tensor, torch.Tensor]


class DirectLoader:
    """A loader without timm's prefetcher: moves batches to a device, mixes them there, and ends after `max_batches`."""

    def __init__(
        self,
        loader: DataLoader[Batch],
        *,
        device: torch.device,
        dtype: torch.dtype,
        mix: Mixup | None = None,
        max_batches: int | None = None,
    ):
        outlive_signals(loader)
        self._loader = loader
        self._max_batches = max_batches
        self._device = device
        self._dtype = dtype
        self._mix = mix
        self.mixup_enabled = mix is not None
        self.dataset: Any = loader.dataset
        self.sampler = loader.sampler

    def __len__(self) -> int:
        count = len(self._loader)
        return count if self._max_batches is None else min(count, self._max_batches)

    def __iter__(self) -> Iterator[Batch]:
        for images, labels in islice(self._loader, self._max_batches):
            # Images in pinned memory are copied to a GPU while the host prepares the step.
            images = images.to(self._device, self._dtype, non_blocking=True)
            labels = labels.to(self._device, non_blocking=True)
            if self._mix is not None:
                self._mix.mixup_enabled = self.mixup_enabled
                images, labels = self._mix(images, labels)
            yield images, labels


Loader: TypeAlias = PrefetchLoader
"""timm's loader, or one with the same use: a `DirectLoader`, or a job's loader over its tasks."""


def without_padding(loader: Loader, world: World, after_batch: Callable[[], None] = lambda: None) -> Iterator[Batch]:
    """The batches of this rank without the images that timm's sampler repeats to make ranks even.

    `after_batch` runs equally often on all ranks, except for streams, whose readers divide the images.
    """
    if isinstance(loader.dataset, IterableDataset):
        yield from loader
        return
    # The sampler gives rank r the images r, r + size, ... and starts over at image 0 if ranks would be uneven.
    left = len(range(world.rank, len(loader.dataset), world.size))
    for images, labels in loader:
        if left > 0:
            yield images[:left], labels[:left]
        left -= len(images)
        after_batch()


def some_images(loader: Iterable[Batch], count: int) -> Iterator[torch.Tensor]:
    """The first `count` images of a loader, in batches."""
    for images, _ in loader:
        yield images[:count]
        count -= len(images)
        if count <= 0:
            return

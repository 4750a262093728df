"""Which images of a task an epoch has, where its classes are to come equally often."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset, DistributedSampler

from stitchkit.distributed import World


class BalancedSampler(DistributedSampler[Any]):
    """Draws as many images as there are, with replacement, so that every class is equally likely.

    Args:
        images: The training split.
        labels: The class of each image.
        world: The ranks, which divide the images of an epoch as without balance.
        seed: Of the draws, with the number of the epoch.
    """

    def __init__(self, images: Dataset[Any], labels: Sequence[int], world: World, seed: int):
        super().__init__(images, world.size, world.rank, seed=seed)
        counts = Counter(labels)
        self._weights = torch.tensor([1 / counts[label] for label in labels], dtype=torch.float64)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        drawn = torch.multinomial(self._weights, self.total_size, replacement=True, generator=generator)
        return iter(drawn[self.rank :: self.num_replicas].tolist())

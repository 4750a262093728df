"""The images of the study, in memory: each split with its labels and typefaces, and training batches of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from stitchkit.data.batches import Batch

_SHIFT = 2
"""Most pixels that a training image is moved; it is not flipped, since most characters have a direction."""


@dataclass(frozen=True, eq=False)
class Split:
    """Grey images of characters.

    Args:
        images: `[N, 1, H, W]`, uint8.
        labels: `[N]`.
        typefaces: The number of each image's typeface, `[N]`; no two splits share one.
    """

    images: torch.Tensor
    labels: torch.Tensor
    typefaces: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def split_off(self, count: int, seed: int) -> tuple[Split, Split]:
        """All images but `count` that the seed chooses, and these."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        rest, some = (
            Split(self.images[part], self.labels[part], self.typefaces[part]) for part in (order[count:], order[:count])
        )
        return rest, some

    def batches(self, size: int, device: torch.device) -> Iterator[Batch]:
        """All images in their order, normalised, with their labels."""
        for images, labels in zip(torch.split(self.images, size), torch.split(self.labels, size), strict=True):
            yield normalised(images.to(device)), labels.to(device)


def normalised(images: torch.Tensor) -> torch.Tensor:
    """Images `[B, 1, H, W]` of bytes as their contrast to the ground, with mean 0 and deviation 1 in each.

    The ground is the median of the border. Whether ink is darker or lighter says nothing about the character, and small
    networks take many epochs to learn that.
    """
    border = torch.cat([images[..., 0, :], images[..., -1, :], images[..., 0], images[..., -1]], dim=-1).float()
    contrast = (images.float() - border.median(dim=-1).values[..., None, None]).abs()
    spread, mean = torch.std_mean(contrast, dim=(-2, -1), keepdim=True)
    return (contrast - mean) / spread.clamp_min(1e-3)


class TrainingBatches:
    """Endless passes over a split in random order; an epoch takes so many steps of them.

    Args:
        split: The images.
        size: Images of a batch.
        steps: Batches of the one epoch that a training is.
    """

    def __init__(self, split: Split, size: int, steps: int, device: torch.device):
        self.dataset = split
        self.sampler = None
        self._size = size
        self._steps = steps
        self._device = device

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[Batch]:
        order = torch.randperm(len(self.dataset))
        for _ in range(self._steps):
            if len(order) < self._size:
                order = torch.cat([order, torch.randperm(len(self.dataset))])
            chosen, order = order[: self._size], order[self._size :]
            images = normalised(_shifted(self.dataset.images[chosen].to(self._device)))
            yield images, self.dataset.labels[chosen].to(self._device)


def _shifted(images: torch.Tensor) -> torch.Tensor:
    """Images moved by the same random number of pixels; what enters at a border repeats it."""
    height, width = images.shape[-2:]
    wider = F.pad(images.float(), (_SHIFT,) * 4, mode="replicate")
    down, right = torch.randint(2 * _SHIFT + 1, (2,)).tolist()
    return wider[..., down : down + height, right : right + width]

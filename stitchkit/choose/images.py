"""The images that joints are scored on: a few of a training split."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any, cast

import torch
from timm.data import create_transform
from torch.utils.data import DataLoader, IterableDataset, Subset

from stitchkit.data.batches import Batch
from stitchkit.data.decoding import Decoding
from stitchkit.data.labelled_images import Images
from stitchkit.data.loader_processes import explained, outlive_signals, usable_cores
from stitchkit.data.unreadable import CheckedImages, report
from stitchkit.distributed import World
from stitchkit.errors import InputError
from stitchkit.networks.data_config import DataConfig, timm_config
from stitchkit.progress import progress


class SomeImages:
    """Batches of images drawn by a seed, prepared as for evaluation; unreadable ones are replaced.

    Args:
        images: Where they are drawn from, each at most once; of a stream the first.
        prepared: How they are decoded and prepared.
        batch_size: Images in a batch; there are always two batches.
        what: Name of the progress.
    """

    def __init__(
        self, images: Images, prepared: DataConfig, *, count: int, batch_size: int, device: torch.device, seed: int = 0,
        workers: int = 0, what: str = "score",
    ):  # fmt: skip
        chosen: Any
        transform = create_transform(**timm_config(prepared), is_training=False)
        images.decoding = Decoding.of(prepared)
        if isinstance(images, IterableDataset):  # its reader skips bad images itself
            chosen = [(transform(image), label) for image, label in islice(images, count)]
        else:
            checked = CheckedImages(images, num_classes=0, is_training=True)
            checked.transform = transform
            order = torch.randperm(len(checked), generator=torch.Generator().manual_seed(seed))
            chosen = Subset(checked, order[:count].tolist())
        if len(chosen) < 2:
            raise InputError(f"joints are scored on at least 2 images, but there is {len(chosen)}; give more")
        size = min(batch_size, -(-len(chosen) // 2))
        self._loader = DataLoader(chosen, size, num_workers=min(workers, usable_cores()))  # torch warns of more
        outlive_signals(self._loader)
        self._device, self._what = device, what

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        loader = cast(DataLoader[Batch], self._loader)
        with explained("lower --workers"):
            for images, labels in progress(loader, World(0, 1, self._device), self._what, unit="batches"):
                yield images.to(self._device), labels.to(self._device)
        report(loader.dataset)

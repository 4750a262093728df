"""The images that joints are scored on: a few of a training split, or of a folder without labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from PIL.Image import Image
from timm.data import create_transform
from torch.utils.data import DataLoader, IterableDataset, Subset

from stitchkit.data.batches import Batch
from stitchkit.data.folders import image_files, is_split
from stitchkit.data.labelled_images import LabelledImages
from stitchkit.data.loader_processes import explained, outlive_signals, usable_cores
from stitchkit.data.open_dataset import Images, open_dataset
from stitchkit.data.source import Source
from stitchkit.data.split_rule import names_of
from stitchkit.data.unreadable import NO_CLASS, CheckedImages, open_image, report
from stitchkit.distributed import World
from stitchkit.errors import InputError
from stitchkit.networks.data_config import DataConfig
from stitchkit.progress import progress


class _UnlabelledFiles(Sequence[tuple[Image, int]]):
    """Image files without labels."""

    def __init__(self, paths: Sequence[str]):
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: Any) -> Any:
        return open_image(self._paths[index]), NO_CLASS


def has_labels(data: str, dataset: str) -> bool:
    """Whether this is a data set, not a folder of images without splits; both are as in `stitchkit train`."""
    folder = Path(data)
    return bool(dataset) or not folder.is_dir() or any(is_split(folder / name) for name in names_of("train"))


def open_some(data: str, dataset: str, *, channels: int) -> Images:
    """The training split of a data set, or all images of a folder without splits; images have so many channels."""
    mode = "RGB" if channels == 3 else "L"
    if has_labels(data, dataset):
        return open_dataset(Source(dataset, data, mode=mode), "train", is_training=True)
    return LabelledImages(_UnlabelledFiles(image_files(data)), (), mode, "images")


class SomeImages:
    """Batches of images drawn by a seed, prepared as for evaluation; unreadable ones are replaced.

    Args:
        images: Where they are drawn from, each at most once; of a stream the first.
        prepared: The preparation, in timm's terms.
        count: How many images.
        batch_size: Images in a batch; there are always two batches.
        device: Where they are.
        seed: Seed of the draw.
        workers: Loader processes.
        what: Name of the progress.
    """

    def __init__(
        self, images: Images, prepared: DataConfig, *, count: int, batch_size: int, device: torch.device, seed: int = 0,
        workers: int = 0, what: str = "score",
    ):  # fmt: skip
        chosen: Any
        transform = create_transform(**prepared, is_training=False)
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

"""Images with labels from any reader, decoded in one way, and their class names."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from PIL.Image import Image
from timm.data import IterableImageDataset
from timm.data.readers.reader import Reader
from timm.data.readers.reader_image_folder import ReaderImageFolder
from torch.utils.data import ConcatDataset, Dataset, get_worker_info
from torchvision.datasets import VisionDataset

from stitchkit.data.class_map import names_at
from stitchkit.data.decoding import Change, Decoding, ImageSource
from stitchkit.data.source import SOURCES
from stitchkit.display import counted
from stitchkit.distributed import most_of_ranks, sum_over_ranks
from stitchkit.errors import InputError
from stitchkit.settings.fields import MOST_CLASSES

_logger = logging.getLogger(__name__)


@dataclass
class LabelledImages(Dataset[tuple[Any, int]]):
    """Images with their labels.

    Args:
        samples: One of timm's readers, or images or their files with labels; a label is None where there is none.
        classes: Class names in the order of their numbers; empty if the reader does not know them.
        decoding: How images are decoded; whoever knows the network sets it.
    """

    samples: Reader | Sequence[tuple[ImageSource, int | None]] | ConcatDataset[tuple[ImageSource, int]]
    classes: tuple[str, ...]
    split: str = ""
    decoding: Decoding = field(default_factory=Decoding)
    transform: Callable[[Image], object] | None = None

    @property
    def reader(self) -> Any:
        """The reader of timm's that has the samples, or None."""
        return self.samples if isinstance(self.samples, Reader) else None

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        source, label = self.samples[index]
        image = self.decoding(source)
        return image if self.transform is None else self.transform(image), -1 if label is None else int(label)


class Changes:
    """What decoding did to each image of a split."""

    def __init__(self, size: int):
        # Loader processes write to it, each its own bytes, so no lock is needed.
        self._changes = torch.zeros(size, dtype=torch.uint8).share_memory_()  # type: ignore[no-untyped-call]
        self._is_reported = False

    def __setitem__(self, number: int, change: Change) -> None:
        if change and number < len(self._changes):  # the length of a stream may be an estimate
            self._changes[number] = change

    def report(self, split: str, decoding: Decoding, *, are_divided: bool = False) -> None:
        """Log the changes so far, once; every rank calls this, and has images of its own if they `are_divided`."""
        changes = self._changes.clone()  # loader processes may still write
        if not are_divided:
            most_of_ranks(changes)
        counts = torch.stack([(changes & change).count_nonzero() for change in Change])
        if are_divided:
            sum_over_ranks(counts)
        words = decoding.described(dict(zip(Change, counts.tolist(), strict=True)))
        if words and not self._is_reported:  # one rank may have reported alone before
            self._is_reported = True
            _logger.info("of the %s of the %s split: %s", counted(len(changes), "image"), split, words)


class StreamedImages(IterableImageDataset):  # type: ignore[misc] # timm has no types
    """Images with their labels from one of timm's readers that gives them one after the other."""

    def __init__(self, reader: Any, classes: tuple[str, ...], split: str):
        super().__init__("", reader=reader)
        self.classes, self.split, self.decoding = classes, split, Decoding()
        self._changes = Changes(len(self))

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        for count, (source, label) in enumerate(self.reader):
            try:
                image, change = self.decoding.read(source)
            except InputError as error:  # as the readers do with damaged images
                _logger.warning("an image of the %s split is skipped (%s)", self.split, error)
                continue
            self._changes[first + count * step] = change
            yield image if self.transform is None else self.transform(image), label

    def report(self) -> None:
        """Log the images that decoding changed, once; every rank calls this, and each has images of its own."""
        self._changes.report(self.split, self.decoding, are_divided=True)


Images: TypeAlias = LabelledImages | StreamedImages
"""An open split: a dataset of images and labels with `.classes`, `.split`, and settable `.decoding` and `.transform`.
"""


def class_names(reader: Reader | VisionDataset) -> tuple[str, ...]:
    """A reader's class names; numbers if it has no names, and empty if the classes are unknown."""
    if names := getattr(reader, "classes", None):
        # ImageNet lists all synonyms of a class.
        return tuple(name if isinstance(name, str) else name[0] for name in names)
    if numbers := getattr(reader, "class_to_idx", None):
        return names_at(numbers)
    published = SOURCES.get(type(reader).__name__.lower())
    return numbered((published and published.num_classes) or _count_labels(reader))


def image_names(images: Images) -> tuple[str, ...]:
    """The files of the images, relative to the folder of their split; empty if each is not a file of its own."""
    reader = getattr(images, "reader", None)
    return tuple(reader.filenames()) if isinstance(reader, ReaderImageFolder) else ()


def image_labels(images: Images) -> list[int] | None:
    """The labels of the images; None where they are known only by reading the images."""
    reader = getattr(images, "reader", None)
    samples = reader.samples if isinstance(reader, ReaderImageFolder) else getattr(images, "samples", None)
    return [label for _, label in samples] if isinstance(samples, list) else None


def numbered(count: int) -> tuple[str, ...]:
    """Numbers as class names, padded to the width of the last, so that they sort as text."""
    return tuple(f"{number:0{len(str(count - 1))}d}" for number in range(count))


def _count_labels(reader: Reader | VisionDataset) -> int:
    """Number of classes in an Arrow table whose labels are whole numbers; 0 if it has none."""
    table = getattr(reader, "dataset", None)
    if table is None or not hasattr(table, "unique"):
        return 0
    kind = str(getattr(table.features.get(reader.label_key), "dtype", ""))
    labels = table.unique(reader.label_key) if kind.startswith(("int", "uint", "bool")) else []
    if not labels or None in labels or min(labels) < 0 or max(labels) >= MOST_CLASSES:
        return 0
    return 1 + int(max(labels))  # not len(): logits are indexed by class number, and numbers may have gaps

"""Images with labels from readers other than timm's, and the class names of any reader."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from PIL.Image import Image
from timm.data import ImageDataset
from timm.data.readers.reader import Reader
from timm.data.readers.reader_image_folder import ReaderImageFolder
from torch.utils.data import ConcatDataset, Dataset
from torchvision.datasets import VisionDataset

from stitchkit.data.class_map import MOST_CLASSES, names_at
from stitchkit.data.source import SOURCES


@dataclass
class LabelledImages(Dataset[tuple[Any, int]]):
    """Images with their labels, from readers other than timm's.

    Args:
        samples: Images, or the results of a reader's loader, with their labels.
        classes: Class names in the order of their numbers; empty if the reader does not know them.
        mode: PIL mode to which images are converted; empty for no conversion.
        split: Name of the split.
        transform: Applied to the converted image.
    """

    samples: Sequence[tuple[Any, int]] | ConcatDataset[tuple[Any, int]]
    classes: tuple[str, ...]
    mode: str = "RGB"
    split: str = ""
    transform: Callable[[Image], object] | None = None

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image, label = self.samples[index]
        image = image.convert(self.mode) if self.mode else image
        return image if self.transform is None else self.transform(image), int(label)


Images: TypeAlias = ImageDataset | LabelledImages
"""An open split: a dataset of images and labels with `.classes`, `.split` and a settable `.transform`."""


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

"""torchvision's data sets: the names of their splits, the contents of their folders, and their images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import torchvision.datasets
from sklearn.model_selection import train_test_split
from torch.utils.data import ConcatDataset, Dataset, Subset
from torchvision.datasets import VisionDataset

from stitchkit.data.labelled_images import LabelledImages, class_names
from stitchkit.errors import InputError, one_line

Item = TypeVar("Item")

TEST_SHARE = 0.2
"""Share of images for testing if no split is published."""


class VisionSet(NamedTuple):
    """One of torchvision's data sets.

    Args:
        reader: Name of its class.
        argument: The argument that chooses a split; None if no split is published, so that we make one.
        train: Its values for all images that are not for testing.
        test: Its value for the images that are; `val` if only that has labels.
        needs: The contents of its folder.
        by_hand: Whether the user must download it.
        options: Further arguments of its class.
    """

    reader: str
    argument: str | None
    train: tuple[object, ...]
    test: object
    needs: str
    by_hand: bool = False
    options: Mapping[str, str] = MappingProxyType({})


_ROWS = (
    VisionSet("CIFAR10", "train", (True,), False, "cifar-10-batches-py/"),
    VisionSet("CIFAR100", "train", (True,), False, "cifar-100-python/"),
    VisionSet("MNIST", "train", (True,), False, "MNIST/raw/"),
    VisionSet("FashionMNIST", "train", (True,), False, "FashionMNIST/raw/"),
    VisionSet("KMNIST", "train", (True,), False, "KMNIST/raw/"),
    VisionSet("EMNIST", "train", (True,), False, "EMNIST/raw/", options={"split": "digits"}),
    VisionSet("USPS", "train", (True,), False, "usps.bz2 and usps.t.bz2"),
    VisionSet("SVHN", "split", ("train",), "test", "train_32x32.mat and test_32x32.mat"),
    VisionSet("GTSRB", "split", ("train",), "test", "gtsrb/GTSRB/ and gtsrb/GT-final_test.csv"),
    VisionSet("Food101", "split", ("train",), "test", "food-101/"),
    VisionSet("STL10", "split", ("train",), "test", "stl10_binary/"),
    VisionSet("DTD", "split", ("train", "val"), "test", "dtd/dtd/"),
    VisionSet("Flowers102", "split", ("train", "val"), "test", "flowers-102/"),
    VisionSet("RenderedSST2", "split", ("train", "val"), "test", "rendered-sst2/"),
    VisionSet("PCAM", "split", ("train", "val"), "test", "pcam/"),
    VisionSet("Country211", "split", ("train", "valid"), "test", "country211/"),
    VisionSet("FGVCAircraft", "split", ("trainval",), "test", "fgvc-aircraft-2013b/"),
    VisionSet("OxfordIIITPet", "split", ("trainval",), "test", "oxford-iiit-pet/"),
    VisionSet("Imagenette", "split", ("train",), "val", "imagenette2/"),
    VisionSet("Places365", "split", ("train-standard",), "val", "data_large_standard/, val_large/ and the file lists"),
    VisionSet("EuroSAT", None, (), None, "eurosat/2750/"),
    VisionSet("SUN397", None, (), None, "SUN397/"),
    VisionSet("FER2013", "split", ("train",), "test", "fer2013/ with fer2013.csv or icml_face_data.csv", by_hand=True),
    VisionSet(
        "StanfordCars", "split", ("train",), "test",
        "stanford_cars/ with cars_train/, cars_test/, devkit/ and cars_test_annos_withlabels.mat", by_hand=True,
    ),
    VisionSet(
        "ImageNet", "split", ("train",), "val",
        "train/ and val/ with one folder per class in each, or ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and "
        "ILSVRC2012_devkit_t12.tar.gz", by_hand=True,
    ),
)  # fmt: skip
SOURCES = {source.reader.lower(): source for source in _ROWS} | {
    f"emnist{split}": VisionSet("EMNIST", "train", (True,), False, "EMNIST/raw/", options={"split": split})
    for split in torchvision.datasets.EMNIST.splits
}
"""torchvision's data sets by name."""

SHORT = {
    "aircraft": "fgvcaircraft", "cars": "stanfordcars", "flowers": "flowers102", "imagenet1k": "imagenet",
    "oxfordpets": "oxfordiiitpet", "pets": "oxfordiiitpet",
}  # fmt: skip
"""Their other names."""


def read(
    key: str, root: str | Path | None, split: str, *, download: bool, mode: str = "",
    loader: Callable[[str], object] | None = None,
) -> LabelledImages:  # fmt: skip
    """The `train` or `test` part of a torchvision data set, by its key in `SOURCES` and the folder of its files.

    If the reader has files, `loader` replaces its decoder of paths.
    """
    source = SOURCES[key]
    if root is None:
        raise InputError(f"data set '{key}' is read from files; name the folder with {source.needs} (--data DIR)")
    parts: list[Dataset[Any]]
    if source.argument is None:
        readers = [_create(key, root, {}, download)]
        parts = [Subset(readers[0], _own_split(readers[0], split))]
    else:
        values = source.train if split == "train" else (source.test,)
        readers = [_create(key, root, {source.argument: value}, download) for value in values]
        parts = [*readers]
    for reader in readers:
        if loader is not None and hasattr(reader, "loader"):
            reader.loader = loader
    return LabelledImages(ConcatDataset(parts), class_names(readers[0]), mode, split)


def _create(key: str, root: str | Path, options: dict[str, object], download: bool) -> VisionDataset:
    source = SOURCES[key]
    kind, arguments = getattr(torchvision.datasets, source.reader), {**source.options, **options}
    try:
        return kind(str(root), **arguments)
    except Exception as error:  # readers raise many types
        fault = error
    if download and not source.by_hand:
        try:
            return kind(str(root), **arguments, download=True)
        except Exception as error:  # the network too
            fault = error
    if source.by_hand:
        advice = "it cannot be downloaded, so put the files there by hand"
    else:
        advice = "try the download again" if download else "put the files there, or add --download"
    raise InputError(
        f"data set '{key}' cannot be read from '{root}' ({one_line(fault)}), where it needs {source.needs}; {advice}"
    ) from fault


def _own_split(reader: VisionDataset, split: str) -> Sequence[int]:
    """Image numbers of our own split, which tests on one in five images of each class."""
    decode, reader.loader = reader.loader, str  # only paths: decoding every image would take minutes
    paths = [reader[index] for index in range(len(reader))]
    reader.loader = decode
    # Readers list folders in the order of the disk, but the split must be the same everywhere.
    numbers = sorted(range(len(paths)), key=paths.__getitem__)
    rest, test = divide(numbers, [paths[number][1] for number in numbers], TEST_SHARE)
    return rest if split == "train" else test


def divide(items: Sequence[Item], labels: Sequence[int], share: float) -> tuple[list[Item], list[Item]]:
    """Draw a share of each class with a fixed seed; return the rest and the drawn items."""
    try:
        rest, drawn = train_test_split(items, test_size=share, stratify=labels, random_state=0)
    except ValueError as error:
        raise InputError(
            f"{len(items)} images are too few to split by class: {error}; add the missing images"
        ) from error
    return rest, drawn

"""The images of torchvision's data sets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torchvision.datasets
from torch.utils.data import ConcatDataset, Dataset, Subset
from torchvision.datasets import VisionDataset

from stitchkit.data.labelled_images import LabelledImages, class_names
from stitchkit.data.source import SOURCES, MissingData
from stitchkit.errors import InputError, one_line

Item = TypeVar("Item")

TEST_SHARE = 0.2
"""Share of images for testing if no split is published."""


def read(
    key: str, root: str | Path | None, split: str, *, download: bool, mode: str = "",
    loader: Callable[[str], object] | None = None,
) -> LabelledImages:  # fmt: skip
    """The `train` or `test` part of a torchvision data set, by its key in `SOURCES` and the folder of its files.

    If the reader has files, `loader` replaces its decoder of paths.
    """
    source = SOURCES[key]
    if root is None:
        raise MissingData(f"data set '{key}' is read from files; name the folder with {source.needs} (--data DIR)")
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
    raise MissingData(
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
    from sklearn.model_selection import train_test_split  # as in `digits`

    try:
        rest, drawn = train_test_split(items, test_size=share, stratify=labels, random_state=0)
    except ValueError as error:
        raise InputError(
            f"{len(items)} images are too few to split by class: {error}; add the missing images"
        ) from error
    return rest, drawn

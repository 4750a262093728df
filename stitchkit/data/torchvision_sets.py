"""The images of torchvision's data sets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torchvision.datasets
from torch.utils.data import ConcatDataset, Dataset, Subset
from torchvision.datasets import VisionDataset

from stitchkit.data.labelled_images import LabelledImages, class_names
from stitchkit.data.source import SOURCES, MissingData, Source, key_of
from stitchkit.errors import InputError, one_line

Item = TypeVar("Item")

TEST_SHARE = 0.2
"""Share of images for testing if no split is published."""


def read(source: Source, split: str) -> LabelledImages:
    """The `train` or `test` part of a torchvision data set: images, or their files if the reader has them."""
    published = SOURCES[key_of(source.name)]
    if source.root is None:
        raise MissingData(f"data set '{source.name}' needs files; give --data the folder with {published.needs}")
    parts: list[Dataset[Any]]
    if published.argument is None:
        readers = [_create(source, {})]
        parts = [Subset(readers[0], _own_split(readers[0], split))]
    else:
        values = published.train if split == "train" else (published.test,)
        readers = [_create(source, {published.argument: value}) for value in values]
        parts = [*readers]
    for reader in readers:
        if hasattr(reader, "loader"):
            reader.loader = Path  # torchvision's own decodes without the depth, transparency and orientation
    return LabelledImages(ConcatDataset(parts), class_names(readers[0]), split)


def _create(source: Source, options: dict[str, object]) -> VisionDataset:
    published = SOURCES[key_of(source.name)]
    kind, arguments = getattr(torchvision.datasets, published.reader), {**published.options, **options}
    fault: Exception | None = None
    for download in ({}, {"download": True}) if source.download and not published.by_hand else ({},):
        try:
            return kind(str(source.root), **arguments, **download)
        except Exception as error:  # noqa: PERF203 # readers and the network raise many types
            fault = error
    assert fault is not None, "nothing could be read"
    if published.by_hand:
        advice = "it cannot be downloaded, so put the files there by hand"
    else:
        advice = "try the download again" if source.download else f"put the files there, or {source.advice}"
    raise MissingData(
        f"data set '{source.name}' cannot be read from '{source.root}' ({one_line(fault)}), where it needs "
        f"{published.needs}; {advice}"
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
        raise InputError(f"{len(items)} images are too few to split by class: {error}; add more") from error
    return rest, drawn

"""Collections of data sets as image folders: `train/`, `val/` and `test/`, with one folder per class in each."""

from __future__ import annotations

import argparse
import io
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, TypeAlias

from PIL import Image
from pydantic import Field, StrictStr
from pydantic.dataclasses import dataclass
from pydantic.json_schema import JsonSchemaValue

from stitchkit.data.decoding import Decoding, ImageSource
from stitchkit.data.folders import open_images
from stitchkit.data.labelled_images import LabelledImages
from stitchkit.data.open_dataset import read_timm
from stitchkit.data.source import SOURCES, Source
from stitchkit.data.split_rule import is_split
from stitchkit.data.torchvision_sets import TEST_SHARE, divide, read
from stitchkit.display import aligned
from stitchkit.errors import InputError, unknown
from stitchkit.files import filling
from stitchkit.settings.fields import Amount, Classes
from stitchkit.settings.files import naming, read_settings_file
from stitchkit.settings.schema import DatasetName, Settings, json_schema, parse

VALIDATION_SHARE = 0.1
"""Share of the images not for testing that is for validation."""

SPLITS = ("train", "val", "test")
_SOURCES = "sources"
_KEPT = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class CollectionTask(Settings):
    """A data set of a collection.

    Args:
        source: A torchvision data set, a timm string, or a folder in `sources/` that the user fills.
        classes: Number of classes.
        images: Number of images in all splits together.
        splits: The splits of a timm string for training and for testing; a single one is divided.
        by_hand: Instructions to get the folder.
    """

    source: DatasetName
    classes: Annotated[Classes, Field(ge=1)]
    images: Amount
    splits: tuple[StrictStr, ...] = Field(default=("train", "test"), min_length=1, max_length=2)
    by_hand: StrictStr = ""

    def __post_init__(self) -> None:
        if self.by_hand and (Path(self.source).is_absolute() or ".." in Path(self.source).parts):
            raise InputError(f"source is {self.source!r}; name a folder inside sources/, by a path without '..'")


@dataclass(frozen=True)
class Collection(Settings):
    """Data sets that are prepared together.

    Args:
        datasets: The data sets, by the names of their folders.
    """

    datasets: dict[StrictStr, CollectionTask] = Field(min_length=1)

    def __post_init__(self) -> None:
        for name in self.datasets:
            if Path(name).name != name or name == _SOURCES:
                raise InputError(f"datasets.{name}: {name!r} cannot be the name of its folder; choose another")


def collection_schema() -> JsonSchemaValue:
    """The JSON Schema of a collection's file."""
    return json_schema(Collection)


COLLECTIONS = {path.stem: path for path in sorted(Path(__file__).with_name("collections").glob("*.yml"))}
"""The files of the collections known by name."""


def read_collection(name: str) -> Mapping[str, CollectionTask]:
    """The data sets by name of a collection, which is a key of `COLLECTIONS` or the user's own file."""
    path = COLLECTIONS.get(name, Path(name))
    if name not in COLLECTIONS and not path.is_file():
        raise InputError(f"{unknown('collection', name, COLLECTIONS)}; or name a file of your own")
    content = read_settings_file(path)
    with naming(path):
        return parse(Collection, content).datasets


Part: TypeAlias = list[tuple[LabelledImages, int, int]]
"""Samples of a part, each as its data set, its number there and its label."""


def prepare(collection: str, root: Path, only: Sequence[str] = ()) -> None:
    """Write the data sets of a collection to `root/NAME/`, and only check those that exist.

    Downloads, and folders that the user fills, are in `root/sources/`.
    """
    tasks = read_collection(collection)
    if wrong := [name for name in only if name not in tasks]:
        raise unknown(f"data set of {collection}", wrong[0], tasks)
    missing = []
    for name in only or tasks:
        try:
            print(f"{name}: {prepare_one(name, tasks[name], root)}")
        except InputError as error:  # noqa: PERF203
            print(f"{name}: {error}")
            missing.append(name)
    if missing:
        raise InputError(f"still missing: {', '.join(missing)}; follow the advice above, then run the command again")


def prepare_one(name: str, task: CollectionTask, root: Path) -> str:
    """Write one data set as `root/name/`, or check it if it exists; returns its contents, in words."""
    folder, sources = root / name, root / _SOURCES
    if folder.exists():
        return _check(folder, task)
    sources.mkdir(parents=True, exist_ok=True)
    parts, classes = _open(task, sources)
    # Counted before anything is written: mirrors lose files, and accuracies on an incomplete set are not comparable.
    count = sum(map(len, parts))
    if (len(classes), count) != (task.classes, task.images):
        raise InputError(
            f"its source in '{sources}' has {count:,} images of {len(classes)} classes instead of "
            f"{task.images:,} of {task.classes}; remove its files there and run the command again"
        )

    def draw(part: Part, share: float) -> tuple[Part, Part]:
        return divide(part, [label for _, _, label in part], share)

    rest, test = parts if len(parts) == 2 else draw(parts[0], TEST_SHARE)
    with filling(folder) as unfinished:
        for split, part in zip(SPLITS, (*draw(rest, VALIDATION_SHARE), test), strict=True):
            for class_name in classes:
                (unfinished / split / class_name).mkdir(parents=True)
            for images, number, label in part:
                _write(images.samples[number][0], unfinished / split / classes[label] / f"{number:06d}")
        return _check(unfinished, task)


def _open(task: CollectionTask, sources: Path) -> tuple[list[Part], list[str]]:
    """The parts for training and testing, or one for both, and the folder names of classes; files stay undecoded."""
    opened: list[LabelledImages]
    source = Source(task.source, sources, download=True)
    if task.source in SOURCES:
        opened = [read(source, split) for split in ("train", "test")]
    elif task.by_hand:
        opened = [_open_folder(sources / task.source, task)]
    else:
        opened = [read_timm(source, split) for split in task.splits]
    parts = [
        [
            (images, number, int(label))
            for number, (_, label) in enumerate(map(images.samples.__getitem__, range(len(images))))
        ]
        for images in opened
    ]
    return parts, [name.replace("/", "_") for name in opened[0].classes]


def _open_folder(folder: Path, task: CollectionTask) -> LabelledImages:
    if not is_split(folder):
        raise InputError(
            f"it cannot be downloaded: {task.by_hand}, so that its {task.classes} class folders, with {task.images:,} "
            f"images in total, are in '{folder}'"
        )
    images = open_images(folder)
    return LabelledImages([(Path(path), label) for path, label in images.reader.samples], images.classes)


def _write(source: ImageSource, stem: Path) -> None:
    """Write an image, given by its path, its open file, or decoded; a file stays as it is if all can read it."""
    if isinstance(source, Path) and source.suffix.lower() in _KEPT:
        shutil.copyfile(source, stem.with_suffix(source.suffix.lower()))
        return
    if not isinstance(source, Path | str | Image.Image):
        content = source.read()
        source = io.BytesIO(content)
        suffix = f".{(Image.open(source).format or '').lower()}"
        if suffix in _KEPT:  # decoding and writing a JPEG again would change the image
            stem.with_suffix(suffix).write_bytes(content)
            return
    Decoding()(source).save(stem.with_suffix(".png"))


def _check(folder: Path, task: CollectionTask) -> str:
    counts = {}
    for split in SPLITS:
        written = open_images(folder / split)
        if len(written.classes) != task.classes:
            raise InputError(
                f"'{folder / split}' has images of {len(written.classes)} classes and must have {task.classes}; remove "
                f"'{folder}' and run the command again"
            )
        counts[split] = len(written)
    if sum(counts.values()) != task.images:
        raise InputError(
            f"'{folder}' has {sum(counts.values()):,} images and must have {task.images:,}; remove it and try again"
        )
    return f"{', '.join(f'{count:,} {split}' for split, count in counts.items())} images of {task.classes} classes"


def list_datasets(_: argparse.Namespace) -> None:
    """Run `stitchkit datasets list`."""
    lines = [(name, "by hand" if source.by_hand else "download", source.needs) for name, source in SOURCES.items()]
    print(aligned([*sorted(lines), ("digits", "built in", "")], left={0, 1, 2}))
    for collection in COLLECTIONS:
        print(f"collection {collection}: {', '.join(read_collection(collection))}")

"""Collections of data sets as image folders: `train/`, `val/` and `test/`, with one folder per class in each."""

from __future__ import annotations

import io
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, TypeAlias

from PIL import Image
from pydantic import Field, StrictStr
from pydantic.dataclasses import dataclass
from pydantic.json_schema import JsonSchemaValue

from stitchkit.data.folders import is_split, open_folder
from stitchkit.data.sources import Source, read_timm
from stitchkit.data.torchvision_sets import SOURCES, TEST_SHARE, Samples, divide, read
from stitchkit.errors import InputError, unknown
from stitchkit.files import fresh_folder
from stitchkit.settings.files import naming, read_settings_file
from stitchkit.settings.schema import DatasetName, Settings, json_schema, parse

VALIDATION_SHARE = 0.1
"""Share of the images not for testing that is for validation."""

SPLITS = ("train", "val", "test")
_SOURCES = "sources"
_KEPT = (".jpg", ".jpeg", ".png")

Count = Annotated[int, Field(strict=True, ge=1)]


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
    classes: Count
    images: Count
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
    """The data sets of a collection by name.

    Args:
        name: A key of `COLLECTIONS`, or the user's own file.
    """
    path = COLLECTIONS.get(name, Path(name))
    if name not in COLLECTIONS and not path.is_file():
        raise InputError(f"{unknown('collection', name, COLLECTIONS)}; or name a file of your own")
    content = read_settings_file(path)
    with naming(path):
        return parse(Collection, content).datasets


_Picture: TypeAlias = Path | bytes | Image.Image
"""An image from a reader: the path or the content of a file, or decoded if there is no file."""


Part: TypeAlias = tuple[Samples, Sequence[int], Sequence[int]]
"""Samples, the numbers of those in the part, and the labels of all samples."""


def prepare(collection: str, root: Path, only: Sequence[str] = ()) -> None:
    """Write the data sets of a collection, each as `root/NAME/`; existing ones are only checked.

    Downloads, and folders that the user fills, are in `root/sources/`.

    Args:
        collection: A name or file for `read_collection`.
        root: The folder to write to.
        only: Names of the data sets to write; by default all.

    Raises:
        InputError: If there is no such data set, or some are unavailable; the others are written.
    """
    tasks = read_collection(collection)
    if wrong := [name for name in only if name not in tasks]:
        raise unknown(f"data set of {collection}", wrong[0], tasks)
    missing = [name for name in only or tasks if not _attempt(name, tasks[name], root)]
    if missing:
        raise InputError(
            f"still missing: {', '.join(missing)}; follow the advice above for each and run the command again, which "
            "resumes with these"
        )


def _attempt(name: str, task: CollectionTask, root: Path) -> bool:
    """Write one data set and print its contents, or the reason why it is unavailable."""
    try:
        print(f"{name}: {prepare_one(name, task, root)}")
    except InputError as error:
        print(f"{name}: {error}")
        return False
    return True


def prepare_one(name: str, task: CollectionTask, root: Path) -> str:
    """Write one data set as `root/name/`, or check it if it exists.

    Returns:
        Its contents, in words.
    """
    folder, sources = root / name, root / _SOURCES
    if folder.exists():
        return _check(folder, task)
    sources.mkdir(parents=True, exist_ok=True)
    parts, classes = _open(task, sources)
    # Counted before anything is written: mirrors lose files, and accuracies on an incomplete set are not comparable.
    images = sum(len(numbers) for _, numbers, _ in parts)
    if (len(classes), images) != (task.classes, task.images):
        raise InputError(
            f"its source in '{sources}' has {images:,} images of {len(classes)} classes instead of "
            f"{task.images:,} of {task.classes}; remove its files there and run the command again"
        )
    # Written under another name first, so that an interrupted command leaves no incomplete data set.
    unfinished = fresh_folder(root / f"{name}.unfinished")
    for split, (samples, numbers, _) in zip(SPLITS, _divide(parts), strict=True):
        for label in classes:
            (unfinished / split / label).mkdir(parents=True)
        for number in numbers:
            image, index = samples[number]
            _write(image, unfinished / split / classes[index] / f"{number:06d}")
    found = _check(unfinished, task)
    unfinished.rename(folder)
    return found


def _open(task: CollectionTask, sources: Path) -> tuple[list[Part], list[str]]:
    """The parts for training and for testing, or one part for both, and the class names as names of folders.

    Images are undecoded where the reader has files.
    """
    if task.source in SOURCES:
        opened = [read(task.source, sources, split, download=True, loader=Path) for split in ("train", "test")]
    elif task.by_hand:
        opened = [_read_folder(sources / task.source, task)]
    else:
        splits = [read_timm(Source(task.source, sources, download=True), split) for split in task.splits]
        opened = [(samples, samples.classes) for samples in splits]
        for samples in splits:
            samples.load_bytes = True  # decoding and writing a JPEG again would change the image
    parts: list[Part] = []
    for samples, _ in opened:
        numbers = range(len(samples))
        parts.append((samples, numbers, [int(samples[number][1]) for number in numbers]))
    return parts, [name.replace("/", "_") for name in opened[0][1]]


def _divide(parts: list[Part]) -> tuple[Part, Part, Part]:
    """The three splits."""
    rest, test = parts if len(parts) == 2 else _draw(parts[0], TEST_SHARE)
    return (*_draw(rest, VALIDATION_SHARE), test)


def _draw(part: Part, share: float) -> tuple[Part, Part]:
    """A part divided into the rest and a share."""
    samples, numbers, labels = part
    rest, drawn = divide(numbers, [labels[number] for number in numbers], share)
    return (samples, rest, labels), (samples, drawn, labels)


def _read_folder(folder: Path, task: CollectionTask) -> tuple[Samples, tuple[str, ...]]:
    """A folder of classes that the user has filled."""
    if not is_split(folder):
        raise InputError(
            f"it cannot be downloaded: {task.by_hand}, so that its {task.classes} class folders, with {task.images:,} "
            f"images in all, are in '{folder}'"
        )
    reader = open_folder(folder)
    return [(Path(path), label) for path, label in reader.samples], tuple(reader.class_to_idx)


def _write(image: _Picture, stem: Path) -> None:
    """Write an image, as the original file if all readers can read that."""
    if isinstance(image, Path) and image.suffix.lower() in _KEPT:
        shutil.copyfile(image, stem.with_suffix(image.suffix.lower()))
        return
    if isinstance(image, Image.Image):
        picture = image
    else:
        picture = Image.open(io.BytesIO(image) if isinstance(image, bytes) else image)
    suffix = f".{(picture.format or '').lower()}"
    if isinstance(image, bytes) and suffix in _KEPT:
        stem.with_suffix(suffix).write_bytes(image)
    else:
        picture.convert("RGB").save(stem.with_suffix(".png"))


def _check(folder: Path, task: CollectionTask) -> str:
    """Count the images and classes of a written data set."""
    counts = {}
    for split in SPLITS:
        places = [place for place in (folder / split).glob("*") if place.is_dir()]
        sizes = [sum(1 for _ in place.iterdir()) for place in places]
        counts[split] = sum(sizes)
        if len(places) != task.classes or 0 in sizes:
            full = len(sizes) - sizes.count(0)
            raise InputError(
                f"'{folder / split}' has images of {full} classes and must have {task.classes}; remove '{folder}' "
                "and run the command again"
            )
    if sum(counts.values()) != task.images:
        raise InputError(
            f"'{folder}' has {sum(counts.values()):,} images and must have {task.images:,}; remove it and run the "
            "command again"
        )
    return f"{', '.join(f'{count:,} {split}' for split, count in counts.items())} images of {task.classes} classes"

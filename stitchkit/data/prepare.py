"""Collections of data sets as image folders: `train/`, `val/` and `test/`, one folder a class in each."""

from __future__ import annotations

import io
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from stitchkit.data.folders import is_split, open_folder
from stitchkit.data.sources import Source, read_timm
from stitchkit.data.torchvision_sets import SOURCES, TEST_SHARE, divide, read
from stitchkit.errors import InputError, unknown
from stitchkit.files import fresh_folder

VALIDATION_SHARE = 0.1
"""How much of what is not for testing is for validation."""

SPLITS = ("train", "val", "test")
_KEPT = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class CollectionTask:
    """A data set of a collection.

    Args:
        source: A torchvision data set, a timm string, or a folder that a person fills.
        classes: How many classes it has.
        images: How many images it has, all splits together.
        splits: The splits of a timm string for training and for testing; one alone is divided by us.
        by_hand: Where a person gets the folder.
    """

    source: str
    classes: int
    images: int
    splits: tuple[str, ...] = ("train", "test")
    by_hand: str = ""


_EUROSAT = CollectionTask("eurosat", 10, 27_000)
_RESISC45 = CollectionTask("hfds/timm/resisc45", 45, 31_500, ("train+validation", "test"))
COLLECTIONS: dict[str, dict[str, CollectionTask]] = {
    "merging": {
        "sun397": CollectionTask("hfds/tanganke/sun397", 397, 39_700),
        "cars": CollectionTask("hfds/tanganke/stanford_cars", 196, 16_185),
        "resisc45": _RESISC45,
        "eurosat": _EUROSAT,
        "svhn": CollectionTask("svhn", 10, 99_289),
        "gtsrb": CollectionTask("gtsrb", 43, 39_270),
        "mnist": CollectionTask("mnist", 10, 70_000),
        "dtd": CollectionTask("dtd", 47, 5_640),
    },
    "geospatial": {
        "eurosat": _EUROSAT,
        "resisc45": _RESISC45,
        "uc_merced": CollectionTask("hfds/blanchon/UC_Merced", 21, 2_100, ("train",)),
        "pattern_net": CollectionTask("hfds/jonathan-roberts1/PatternNet", 38, 30_400, ("train",)),
        "optimal_31": CollectionTask("hfds/jonathan-roberts1/Optimal-31", 31, 1_860, ("train",)),
        "aid": CollectionTask(
            "AID", 30, 10_000, by_hand="get AID.zip from https://captain-whu.github.io/AID and unpack it"
        ),
    },
}
"""Data sets by collection and name."""

Part = tuple[Any, Sequence[int], Sequence[int]]
"""Samples, the numbers of those that are meant, and the labels of all."""


def prepare(collection: str, root: Path, only: Sequence[str] = ()) -> None:
    """Write the data sets of a collection, each as `root/NAME/`; those that are there are checked and left alone.

    Downloads, and folders that a person fills, are in `root/sources/`.

    Args:
        collection: A key of `COLLECTIONS`.
        root: Where they go.
        only: Names of those that are wanted; by default all.

    Raises:
        InputError: If there is no such data set, or some cannot be had; the others are written.
    """
    tasks = COLLECTIONS[collection]
    if wrong := [name for name in only if name not in tasks]:
        raise unknown(f"data set of {collection}", wrong[0], tasks)
    missing = [name for name in only or tasks if not _attempt(name, tasks[name], root)]
    if missing:
        raise InputError(
            f"not there yet: {', '.join(missing)}; do what is said of each above and give the command again, it goes "
            "on with these"
        )


def _attempt(name: str, task: CollectionTask, root: Path) -> bool:
    """Write one data set and say what it has, or say why it cannot be had."""
    try:
        print(f"{name}: {prepare_one(name, task, root)}")
    except InputError as error:
        print(f"{name}: {error}")
        return False
    return True


def prepare_one(name: str, task: CollectionTask, root: Path) -> str:
    """Write one data set as `root/name/`, or check the one that is there.

    Returns:
        What it has.

    Raises:
        InputError: If its source is not there or not complete.
    """
    folder, sources = root / name, root / "sources"
    if folder.exists():
        return _check(folder, task)
    sources.mkdir(parents=True, exist_ok=True)
    parts, classes = _open(task, sources)
    images = sum(len(numbers) for _, numbers, _ in parts)
    if (len(classes), images) != (task.classes, task.images):
        raise InputError(
            f"its source in '{sources}' has {images:,} images of {len(classes)} classes and complete it has "
            f"{task.images:,} of {task.classes}; remove what is there of it and give the command again"
        )
    # Written under another name first: an interrupted command leaves no half data set behind.
    unfinished = fresh_folder(root / f"{name}.unfinished")
    for split, (samples, numbers, _) in zip(SPLITS, _divide(parts), strict=True):
        for label in classes:
            (unfinished / split / label).mkdir(parents=True)
        for number in numbers:
            image, label = samples[number]
            _write(image, unfinished / split / classes[label] / f"{number:06d}")
    found = _check(unfinished, task)
    unfinished.rename(folder)
    return found


def _open(task: CollectionTask, sources: Path) -> tuple[list[Part], list[str]]:
    """What is for training and what for testing, or all in one; and the class names as names of folders.

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
            samples.load_bytes = True
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
    """The rest of a part and a share of it."""
    samples, numbers, labels = part
    rest, drawn = divide(numbers, [labels[number] for number in numbers], share)
    return (samples, rest, labels), (samples, drawn, labels)


def _read_folder(folder: Path, task: CollectionTask) -> tuple[Any, tuple[str, ...]]:
    """A folder of classes that a person has filled."""
    if not is_split(folder):
        raise InputError(
            f"nothing downloads it: {task.by_hand}, so that its {task.classes} class folders, {task.images:,} images "
            f"in all, are in '{folder}'"
        )
    reader = open_folder(folder)
    return [(Path(path), label) for path, label in reader.samples], tuple(reader.class_to_idx)


def _write(image: Any, stem: Path) -> None:
    """Write an image that is a path, the bytes of a file or a PIL image: files as they are where all readers can."""
    if isinstance(image, Path) and image.suffix.lower() in _KEPT:
        shutil.copyfile(image, stem.with_suffix(image.suffix.lower()))
        return
    picture = image
    if isinstance(image, Path | bytes):
        picture = Image.open(io.BytesIO(image) if isinstance(image, bytes) else image)
    suffix = f".{(picture.format or '').lower()}"
    if isinstance(image, bytes) and suffix in _KEPT:
        stem.with_suffix(suffix).write_bytes(image)
    else:
        picture.convert("RGB").save(stem.with_suffix(".png"))


def _check(folder: Path, task: CollectionTask) -> str:
    """Count the images and classes of a data set that is written.

    Raises:
        InputError: If some are missing.
    """
    counts = {}
    for split in SPLITS:
        places = [place for place in (folder / split).glob("*") if place.is_dir()]
        sizes = [sum(1 for _ in place.iterdir()) for place in places]
        counts[split] = sum(sizes)
        if len(places) != task.classes or 0 in sizes:
            full = len(sizes) - sizes.count(0)
            raise InputError(
                f"'{folder / split}' has images of {full} classes and is to have {task.classes}; remove '{folder}' "
                "and give the command again"
            )
    if sum(counts.values()) != task.images:
        raise InputError(
            f"'{folder}' has {sum(counts.values()):,} images and is to have {task.images:,}; remove it and give the "
            "command again"
        )
    return f"{', '.join(f'{count:,} {split}' for split, count in counts.items())} images of {task.classes} classes"

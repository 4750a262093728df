"""Folders of images with masks or depth maps, in the layouts of published data sets.

`docs/dense.md` describes them. Hidden files and masks without an image are ignored, and inner folders belong to a
file's name.

Source: mmsegmentation 1.2 (`docs/en/user_guides/2_dataset_prepare.md`, `tools/dataset_converters/coco_stuff10k.py`) and
the Monocular-Depth-Estimation-Toolbox (`depth/datasets/nyu.py`).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from stitchkit.data.dense.maps import MOST_CLASSES, Content
from stitchkit.data.folders import image_files
from stitchkit.data.source import check_pair_folder, expected_pairs
from stitchkit.data.split_rule import names_of
from stitchkit.display import counted, listed
from stitchkit.errors import InputError
from stitchkit.settings.tasks import DENSE

_RELEASES = {"2014": True, "2017": False}  # COCO-Stuff's years, and whether 0 is ignored
_LARGEST_TEXT = 100_000_000


@dataclass(frozen=True)
class PairFiles:
    """The files of a split; with `skips_zero`, they number classes from 1; `named_in` is the file that names these."""

    split: str
    names: tuple[str, ...]
    images: Sequence[str]
    targets: Sequence[str]
    classes: tuple[str, ...] = ()
    num_classes: int = 0
    skips_zero: bool = False
    notes: str = ""
    named_in: str = ""

    def image(self, index: int) -> tuple[str, Content]:
        """The name and the content of an image."""
        return self.images[index], self.images[index]

    def target(self, index: int) -> tuple[str, Content]:
        """The name and the content of a mask or a depth map."""
        return self.targets[index], self.targets[index]


def find_pairs(root: Path, split: str, task: str) -> PairFiles:
    """The files of a split."""
    check_pair_folder(root, split, task)
    for layout in _LAYOUTS[task]:
        if (files := layout(root, split, task)) is not None:
            return files
    raise InputError(
        f"data folder '{root}' has no split '{split}' of images and {DENSE[task].noun}s; {expected_pairs(split, task)}"
    )


def _paired(root: Path, split: str, task: str) -> PairFiles | None:
    folder = DENSE[task].folder
    for name in names_of(split):
        for images, targets in (
            (root / name / "images", root / name / folder),
            (root / "images" / name, root / folder / name),
        ):
            if images.is_dir() and targets.is_dir():
                classes = read_classes(root) if DENSE[task].has_classes else ()
                pairs, notes = _matched(images, targets, task)
                files = _files(name, images, pairs, notes=notes, classes=classes, num_classes=len(classes))
                return replace(files, named_in=str(root / "classes.txt")) if classes else files
    return None


def _ade20k(root: Path, split: str, task: str) -> PairFiles | None:
    for name in names_of(split):
        images, targets = root / "images" / name, root / "annotations" / name
        if images.is_dir() and targets.is_dir() and _is_ade20k(root, targets):
            pairs, notes = _matched(images, targets, task)
            return _files(name, images, pairs, notes, _read_object_info(root), num_classes=150, skips_zero=True)
    return None


def _is_ade20k(root: Path, masks: Path) -> bool:
    """Whether it is this data set, and not another one in folders of the same names, whose classes begin at 0."""
    beside = any((root / name).is_file() for name in ("objectInfo150.txt", "sceneCategories.txt"))
    return beside or any(name.startswith("ADE_") for name in os.listdir(masks))


def _coco_stuff(root: Path, split: str, task: str) -> PairFiles | None:
    # All splits of one release before those of the other, since their numbers differ.
    for year, skips_zero in _RELEASES.items():
        for name in names_of(split):
            images, targets = root / "images" / f"{name}{year}", root / "annotations" / f"{name}{year}"
            if images.is_dir() and targets.is_dir():
                pairs, notes = _matched(images, targets, task, ending="_labelTrainIds")
                classes = read_classes(root, 171)
                return _files(images.name, images, pairs, notes, classes, num_classes=171, skips_zero=skips_zero)
    return None


def _files(
    split: str,
    folder: Path,
    pairs: Mapping[str, str],
    notes: str,
    classes: tuple[str, ...],
    *,
    num_classes: int,
    skips_zero: bool = False,
) -> PairFiles:
    names = tuple(os.path.relpath(path, folder) for path in pairs)
    return PairFiles(split, names, [*pairs], [*pairs.values()], classes, num_classes, skips_zero, notes)


def _matched(images: Path, targets: Path, task: str, ending: str = "") -> tuple[dict[str, str], str]:
    """The target of each image in a folder, by path, and what is not used, in words."""
    pictures, notes = _by_name(images)
    maps, _ = _by_name(targets, DENSE[task].suffixes, ending)
    missing = [os.path.relpath(path, images) for name, path in pictures.items() if name not in maps]
    if missing:
        wanted = " or ".join(f"NAME{ending}{suffix}" for suffix in sorted(DENSE[task].suffixes, reverse=True))
        raise InputError(
            f"{len(missing)} of {counted(len(pictures), 'image')} in '{images}' have no {DENSE[task].noun} in "
            f"'{targets}': {listed(missing)}; an image NAME.jpg needs {wanted} there"
        )
    if alone := len(maps.keys() - pictures.keys()):
        notes += f"; {counted(alone, DENSE[task].noun)} without an image ignored"
    return {path: maps[name] for name, path in pictures.items()}, notes


def _by_name(folder: Path, suffixes: frozenset[str] = frozenset(), ending: str = "") -> tuple[dict[str, str], str]:
    """The images in a folder by their names without `ending` and suffix, and what else is there, in words."""
    paths, notes = image_files(folder, suffixes)
    paths_by_name: dict[str, str] = {}
    for path in paths:
        name = os.path.splitext(path[len(str(folder)) :].lstrip(os.sep))[0]
        if not name.endswith(ending):
            continue
        name = name.removesuffix(ending)
        if name in paths_by_name:
            raise InputError(f"'{paths_by_name[name]}' and '{path}' differ only in their suffix; keep one of them")
        paths_by_name[name] = path
    return paths_by_name, notes


def _lines(path: Path) -> list[str]:
    """The lines of a text file, without white space around them, up to the last that is not empty."""
    if not path.resolve().is_relative_to(path.parent.resolve()):
        raise InputError(f"'{path}' links out of its folder; copy the file there, so that no other one is read")
    try:
        if path.stat().st_size > _LARGEST_TEXT:
            raise InputError(f"'{path}' has more than {_LARGEST_TEXT:,} bytes; give a text file")
        lines = path.read_text(encoding="utf-8-sig").rstrip().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"'{path}' cannot be read: {error}; give a text file") from error
    return [line.strip() for line in lines]


def read_classes(root: Path, count: int = 0) -> tuple[str, ...]:
    """The class names in `classes.txt` of a data folder, which must be `count` unless it is 0; empty without it."""
    path = root / "classes.txt"
    if not path.is_file():
        return ()
    names = _lines(path)
    if empty := [number for number, name in enumerate(names, 1) if not name]:
        raise InputError(f"line {empty[0]} of '{path}' is empty; write one class name in each line")
    if twice := [name for name, number in Counter(names).items() if number > 1]:
        raise InputError(f"'{path}' names {twice[0]!r} twice; remove or rename one of the two")
    if len(names) != count if count else len(names) > MOST_CLASSES:
        wanted = f"this data set has {count}" if count else f"masks have at most {MOST_CLASSES}, since 255 is ignored"
        raise InputError(f"'{path}' names {counted(len(names), 'class')}; {wanted}")
    return tuple(names)


def _read_object_info(root: Path) -> tuple[str, ...]:
    """ADE20K's class names: the last column of a table that is separated by tabs."""
    path = root / "objectInfo150.txt"
    if not path.is_file():
        return ()
    names = [line.split("\t")[-1].strip() for line in _lines(path)[1:]]
    if len(names) != 150 or not all(names):
        raise InputError(f"'{path}' does not name 150 classes below its header; restore or remove it")
    return tuple(names)


def _nyu(root: Path, split: str, task: str) -> PairFiles | None:
    path = next((root / f"nyu_{name}.txt" for name in names_of(split) if (root / f"nyu_{name}.txt").is_file()), None)
    if path is None:
        return None
    rows = [_row(path, number, line) for number, line in enumerate(_lines(path), 1) if line]
    kept = [(image, depth) for image, depth in rows if depth != "None"]
    if not kept:
        raise InputError(f"'{path}' lists no image with a {DENSE[task].noun}; each line needs both")
    files = [(os.path.join(root, image), os.path.join(root, depth)) for image, depth in kept]
    if missing := [file for pair in files for file in pair if not os.path.isfile(file)]:
        fault = f"{counted(len(missing), 'file')} in '{path}' do not exist: {listed(missing)}"
        raise InputError(f"{fault}; check that its paths begin at '{root}'")
    notes = (
        f"; {counted(len(rows) - len(kept), 'line')} without a {DENSE[task].noun} ignored"
        if len(kept) < len(rows)
        else ""
    )
    images, depths = zip(*files, strict=True)
    return PairFiles(path.stem.removeprefix("nyu_"), tuple(image for image, _ in kept), images, depths, notes=notes)


def _row(path: Path, number: int, line: str) -> tuple[str, str]:
    words = line.split()
    if len(words) not in (2, 3):
        raise InputError(f"line {number} of '{path}' is {line!r}; it needs an image, a depth map and a focal length")
    image, depth = (word if word == "None" else os.path.normpath(word.lstrip("/\\")) for word in words[:2])
    for member in (image, depth):
        if member.split(os.sep)[0] == ".." or "\0" in member:
            raise InputError(f"line {number} of '{path}' names '{member}', outside '{path.parent}'; move it there")
    return image, depth


_LAYOUTS: dict[str, tuple[Callable[[Path, str, str], PairFiles | None], ...]] = {
    "segmentation": (_coco_stuff, _ade20k, _paired),
    "depth": (_nyu, _paired),
}

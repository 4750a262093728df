"""The one rule that chooses the splits for training and evaluation, for training, jobs and StitchNet.

A split is looked up under the requested name, by default `train` or `validation`, and then under its other names; for
`validation`, `test` is the last, so test images need a request (`--val-split test`, a job's `val_split: test`) or a
data set without validation images. A folder counts as a split if it contains a folder, unlike ImageNet's `test/`. Where
no split has class folders, those that have files are splits of images without labels. torchvision's sets have a
training and a test part, as `source` lists them.
"""

from __future__ import annotations

from pathlib import Path

from stitchkit.errors import unknown

_TRAINED = ("train", "training")
_VALIDATION = ("validation", "val", "valid", "dev", "eval", "evaluation")


def names_of(split: str) -> tuple[str, ...]:
    """Names to look up for a split, in order; an unusual name stands for itself."""
    if split in _TRAINED:
        return tuple(dict.fromkeys((split, *_TRAINED)))
    if split in _VALIDATION:
        return tuple(dict.fromkeys((split, *_VALIDATION, "test")))
    return (split,)


def is_split(folder: Path) -> bool:
    """Whether a folder contains a folder that is not hidden; ImageNet's `test/` has only images, without classes."""
    return folder.is_dir() and any(not inner.name.startswith(".") and inner.is_dir() for inner in folder.iterdir())


def plain_split(root: Path, split: str) -> Path | None:
    """The folder of a split without class folders, which has files and no folder; None without one."""
    for folder in (root / name for name in names_of(split)):
        if folder.is_dir() and not is_split(folder) and any(not file.name.startswith(".") for file in folder.iterdir()):
            return folder
    return None


def published_part(split: str) -> str:
    """`train` or `test`, for a split of a set published in two parts."""
    if split in _TRAINED:
        return "train"
    if split in (*_VALIDATION, "test"):
        return "test"
    raise unknown("split", split, (*_TRAINED, *_VALIDATION, "test"))

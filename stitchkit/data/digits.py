"""The demo's data: scikit-learn's handwritten digits, as the image folder that an ImageNet user has."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from stitchkit.errors import InputError
from stitchkit.files import fresh_folder, refuse_link

_SIDE = 32
_TRAINING, _VALIDATION = 1197, 600


def read_digits(split: str) -> Iterator[tuple[int, Image.Image, int]]:
    """The number, image and label of each digit of `train` or `validation`.

    The 8 x 8 scans are enlarged to 32 x 32 without smoothing, so every pixel value is the original's. The split is
    fixed and stratified: 1,197 images to train, 600 to validate.
    """
    from sklearn.datasets import load_digits  # only here: its import takes a second
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    numbers = np.arange(len(digits.target))
    parts = train_test_split(numbers, test_size=_VALIDATION, stratify=digits.target, random_state=0)
    for number in parts[0] if split == "train" else parts[1]:
        pixels = (digits.images[number] * (255 / 16)).round().astype(np.uint8)
        image = Image.fromarray(pixels).resize((_SIDE, _SIDE), Image.Resampling.NEAREST)
        yield int(number), image, int(digits.target[number])


def write_digits(folder: Path) -> None:
    """Write 1,797 real scans of digits as `train/` and `validation/`, one folder per class, unless they exist."""
    if (folder / "validation").is_dir() and (folder / "train").is_dir():
        print(f"{folder} already exists")
        return
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"'{folder}' is not empty; choose a new folder")
    refuse_link(folder)
    # Written under another name first, so that an interrupted command leaves no incomplete data set.
    unfinished = fresh_folder(folder.with_name(folder.name + ".unfinished"))
    for split in ("train", "validation"):
        for number, image, label in read_digits(split):
            place = unfinished / split / str(label)
            place.mkdir(parents=True, exist_ok=True)
            image.save(place / f"{number:04d}.png")
    unfinished.rename(folder)  # also replaces an empty folder
    print(f"{_TRAINING} training and {_VALIDATION} validation images of 10 digits are in {folder}")

"""scikit-learn's handwritten digits."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import Image

_SIDE = 32
_VALIDATION = 600


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

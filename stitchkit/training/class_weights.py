"""Weights of classes in the loss, for data in which some classes are rare."""

from __future__ import annotations

import math
from collections import Counter

import torch

from stitchkit.data.folders import FolderReader
from stitchkit.data.open_dataset import Images
from stitchkit.errors import InputError

_BALANCED = "balanced"


def class_weights(text: str, images: Images, num_classes: int) -> torch.Tensor:
    """The weights `[num_classes]` that `--class-weights` asks for.

    Args:
        text: `balanced`, for weights inverse to the number of training images and 1 on average over these, or numbers
            separated by commas in the order of the classes.
        images: The training split.
        num_classes: Number of logits.
    """
    if (given := read_weights(text)) is None:
        counts = _count(images)
        mean = counts.total() / len(counts)
        return torch.tensor([mean / counts[label] if label in counts else 0.0 for label in range(num_classes)])
    if len(given) != num_classes:
        raise InputError(f"--class-weights is '{text}'; give {num_classes} numbers, one for each class in their order")
    return torch.tensor(given)


def read_weights(text: str) -> list[float] | None:
    """The numbers that `--class-weights` gives; None for balanced weights, which depend on the data."""
    if text == _BALANCED:
        return None
    try:
        weights = [float(word) for word in text.split(",")]
    except ValueError:
        raise InputError(f"--class-weights is '{text}'; give {_BALANCED}, or numbers such as 1,2.5,1") from None
    if not all(0 <= weight < math.inf for weight in weights) or not any(weights):
        raise InputError(f"--class-weights is '{text}'; give numbers from 0, not all of them 0")
    return weights


def _count(images: Images) -> Counter[int]:
    """The number of images of each class of an image folder."""
    reader = getattr(images, "reader", None)
    if not isinstance(reader, FolderReader):
        raise InputError(
            f"--class-weights {_BALANCED} counts the images of an image folder, which this data set is not; "
            "give a number for each class"
        )
    return Counter(label for _, label in reader.samples)

"""Weights of classes in the loss, for data with rare classes."""

from __future__ import annotations

from collections import Counter

import torch

from stitchkit.data.folders import FolderReader
from stitchkit.data.labelled_images import Images
from stitchkit.errors import InputError


def class_weights(text: str, images: Images, num_classes: int) -> torch.Tensor:
    """The weights `[num_classes]` that a setting asks for.

    Args:
        text: A `ClassWeights`; balanced ones are inverse to the number of training images, and 1 on average over these.
        images: The training split.
        num_classes: Number of logits.
    """
    if text == "balanced":
        reader = getattr(images, "reader", None)
        if not isinstance(reader, FolderReader):
            raise InputError("balanced requires an image folder; for this data set, give a number for each class")
        counts = Counter(label for _, label in reader.samples)
        mean = counts.total() / len(counts)
        return torch.tensor([mean / counts[label] if label in counts else 0.0 for label in range(num_classes)])
    weights = [float(word) for word in text.split(",")]
    if len(weights) != num_classes:
        raise InputError(f"'{text}' is not for {num_classes} classes; give {num_classes} numbers, in their order")
    return torch.tensor(weights)

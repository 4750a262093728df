"""Unreadable images and labels that are not a class: skipped, counted and reported; too many end the run."""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torch.utils.data import Dataset

from stitchkit.data.labelled_images import Changes, LabelledImages
from stitchkit.data.unlabelled import has_labels
from stitchkit.display import listed
from stitchkit.distributed import most_of_ranks
from stitchkit.errors import InputError, one_line

_logger = logging.getLogger(__name__)

NO_CLASS = -1
"""The label of images without labels, and of a stand-in for an unreadable image, which an evaluation does not count."""

_FEW = 5  # bad images that even a small split may have, unless the limit is 0
_IN_A_ROW = 10  # as in timm; this is not chance, but perhaps a lost disk
_SHOWN = 5


class CheckedImages(Dataset[tuple[Any, int]]):
    """A dataset that skips unreadable and unlabelled images.

    In training, the next good image replaces a bad one, as in timm. In an evaluation a bad image has no class, so no
    image counts twice; without labels it is replaced there too. Labels must be below `num_classes` unless it is 0. The
    limit is the largest share of bad images, and `flag` sets it; a few are always allowed, unless it is 0.
    """

    def __init__(
        self, dataset: LabelledImages, *, num_classes: int, is_training: bool, limit: float = 0.01, flag: str = ""
    ):
        self.dataset = dataset
        self.classes = tuple(dataset.classes)
        self.split: str = dataset.split
        self.transform: Callable[[Image.Image], object] | None = None  # a loader sets it
        self._is_labelled = has_labels(dataset)
        self._num_classes = num_classes if self._is_labelled else 0
        self._limit = limit
        self._flag = flag
        self._replaces = is_training or not self._is_labelled
        # Loader processes write to it, each its own bytes, so no lock is needed.
        self._bad = torch.zeros(len(dataset), dtype=torch.uint8).share_memory_()  # type: ignore[no-untyped-call]
        self._changes = Changes(len(dataset))
        self._reported = 0
        self._cause = ""

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(index)  # ends a loop over the images
        for number in range(index, index + min(_IN_A_ROW, len(self))):
            sample = self._read(number % len(self))
            if sample is not None:
                return sample if number == index or self._replaces else (sample[0], NO_CLASS)
        raise InputError(
            f"{_IN_A_ROW} images of the {self.split} split in a row are unreadable{self._cause}; check the disk"
        )

    def _read(self, index: int) -> tuple[Any, int] | None:
        try:
            source, label = self.dataset.samples[index]
            image, self._changes[index] = self.dataset.decoding.read(source)
            x = image if self.transform is None else self.transform(image)
            label = NO_CLASS if label is None else label
            if self._num_classes and not 0 <= operator.index(label) < self._num_classes:
                raise InputError(f"label {label} is not a class")
        except Exception as error:  # decoders raise many types
            self._cause = f" ({one_line(error)})"
            if not self._bad[index]:
                if not self._bad.any():  # the others are counted, and named after the epoch
                    _logger.warning("%s of the %s split is skipped%s", self._name(index), self.split, self._cause)
                self._bad[index] = 1
                self._check(int(self._bad.sum()))
            return None
        return x, label if self._is_labelled else NO_CLASS

    def _check(self, count: int) -> None:
        if count > (max(self._limit * len(self), _FEW) if self._limit else 0):
            share = f"{self._flag} {self._limit:g}" if self._flag else f"{100 * self._limit:g} %"
            allowed = f"{share}, and more than {_FEW}" if self._limit else share
            raise InputError(
                f"{count} of {len(self)} images of the {self.split} split cannot be read or have no class, such as "
                f"{self._names(self._bad)}{self._cause}; more than {allowed}. Repair or remove them"
                + (f", or raise {self._flag}" if self._flag else "")
            )

    def _names(self, bad: torch.Tensor) -> str:
        numbers = bad.nonzero().flatten().tolist()
        return listed([self._name(index) for index in numbers[: _SHOWN + 1]], most=_SHOWN)

    def _name(self, index: int) -> str:
        reader = getattr(self.dataset, "reader", None)
        try:
            name = None if reader is None else reader.filename(index)
        except (AssertionError, NotImplementedError):  # readers of records have no file names
            name = None
        return f"number {index}" if name is None else repr(name)

    def report(self) -> None:
        """Log newly skipped images, and once those that decoding changed; every rank calls this."""
        self._changes.report(self.split, self.dataset.decoding)
        bad = most_of_ranks(self._bad.clone())  # loader processes may still write
        count = int(bad.sum())
        if count > self._reported:
            self._reported = count
            _logger.warning(
                "%d of %d images of the %s split cannot be read or have no class: %s; %s",
                count, len(self), self.split, self._names(bad),
                "other images took their places" if self._replaces else "they are not counted",
            )  # fmt: skip
        self._bad |= bad
        self._check(count)


def report(dataset: object) -> None:
    """Report the skipped and the changed images of a loader's dataset, if they are counted."""
    while dataset is not None and not hasattr(dataset, "report"):
        dataset = getattr(dataset, "dataset", None)
    if dataset is not None:
        dataset.report()  # type: ignore[attr-defined] # mypy forgets `hasattr` after the loop

"""Unreadable images and labels that are not a class: skipped, counted and reported; too many end the run."""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from PIL.Image import Image
from torch.utils.data import Dataset

from stitchkit.data.sources import Images
from stitchkit.errors import InputError, one_line

_logger = logging.getLogger(__name__)

NO_CLASS = -1
"""The label of a stand-in for an unreadable image; an evaluation does not count it."""

_IN_A_ROW = 10  # as in timm; this is not chance, but perhaps a lost disk
_SHOWN = 5


class CheckedImages(Dataset[tuple[Any, int]]):
    """A dataset whose unreadable and unlabelled images are skipped.

    In training, the next good image replaces a bad one, as in timm; in an evaluation it has no class, so that no image
    counts twice.

    Args:
        dataset: Images and labels by number.
        num_classes: Labels must be smaller.
        is_training: Replace bad images.
        limit: Largest share of bad images.
        flag: The flag that sets the limit; empty if there is none.
    """

    def __init__(self, dataset: Images, *, num_classes: int, is_training: bool, limit: float = 0.01, flag: str = ""):
        self.dataset = dataset
        self.classes = tuple(dataset.classes)
        self.split: str = dataset.split
        self.transform: Callable[[Image], object] | None = None  # a loader sets it; the dataset may have its own
        self._num_classes = num_classes
        self._limit = limit
        self._flag = flag
        self._is_training = is_training
        # Loader processes write to it, each its own bytes, so no lock is needed.
        self._bad = torch.zeros(len(dataset), dtype=torch.uint8).share_memory_()  # type: ignore[no-untyped-call]
        self._reported = 0
        if hasattr(dataset, "_max_retries"):
            dataset._max_retries = 1  # timm's own retries count nothing, and catch fewer errors

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(index)  # ends a loop over the images
        for number in range(index, index + min(_IN_A_ROW, len(self))):
            found = self._read(number % len(self))
            if found is not None:
                return found if number == index or self._is_training else (found[0], NO_CLASS)
        raise InputError(f"{_IN_A_ROW} images of the {self.split} split in a row cannot be read; check the disk")

    def _read(self, index: int) -> tuple[Any, int] | None:
        try:
            image, label = self.dataset[index]
            image = image if self.transform is None else self.transform(image)
            if not 0 <= operator.index(label) < self._num_classes:
                raise InputError(f"label {label} is not a class")
        except Exception as error:  # decoders raise many types
            if not self._bad[index]:
                if not str(error).startswith("Failed to load"):  # those timm has already logged
                    _logger.warning("Skipped sample (index %d). %s", index, error)
                self._bad[index] = 1
                self._check(int(self._bad.sum()))
            return None
        return image, label

    def _check(self, count: int) -> None:
        if count > self._limit * len(self):
            allowed = f"{self._flag} {self._limit:g}" if self._flag else f"{100 * self._limit:g} %"
            raise InputError(
                f"{count} of {len(self)} images of the {self.split} split cannot be read or have no class, such as "
                f"{self._names(self._bad)}; more than {allowed}. Repair or remove them"
                + (f", or raise {self._flag}" if self._flag else "")
            )

    def _names(self, bad: torch.Tensor) -> str:
        found = bad.nonzero().flatten().tolist()
        return ", ".join(map(self._name, found[:_SHOWN])) + (", ..." if len(found) > _SHOWN else "")

    def _name(self, index: int) -> str:
        reader = getattr(self.dataset, "reader", None)
        try:
            return f"'{reader.filename(index)}'" if reader is not None else f"number {index}"
        except (AssertionError, NotImplementedError):  # readers of records have no file names
            return f"number {index}"

    def report(self) -> None:
        """Log the skipped images if there are more than in the last report; every rank calls this."""
        bad = self._bad.clone()  # loader processes may still write
        if dist.is_initialized():
            dist.all_reduce(bad, op=dist.ReduceOp.MAX)
        count = int(bad.sum())
        if count > self._reported:
            self._reported = count
            _logger.warning(
                "%d of %d images of the %s split cannot be read or have no class: %s; %s",
                count, len(self), self.split, self._names(bad),
                "other images took their places" if self._is_training else "they are not counted",
            )  # fmt: skip
        self._bad |= bad
        self._check(count)


def report(dataset: object) -> None:
    """Report the skipped images of a loader's dataset, if they are counted."""
    while dataset is not None and not isinstance(dataset, CheckedImages):
        dataset = getattr(dataset, "dataset", None)
    if dataset is not None:
        dataset.report()


@contextmanager
def explained() -> Iterator[None]:
    """Raise torch's errors about a dead loader process as an `InputError` of one line."""
    try:
        yield
    except InputError as error:
        if str(error).startswith("Caught InputError in DataLoader worker"):  # torch has added the traceback
            raise InputError(str(error).strip().splitlines()[-1].partition(": ")[2]) from error
        raise
    except (RuntimeError, ConnectionError, EOFError) as error:  # the last two if it died while sending a batch
        if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
            raise
        raise InputError(
            f"a loader process died ({one_line(error)}), perhaps for lack of memory; "
            "lower --workers and resume with --resume auto"
        ) from error

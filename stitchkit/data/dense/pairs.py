"""A split of images with a mask or a depth map each, from a folder or a Hugging Face data set."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image
from torch.utils.data import Dataset

from stitchkit.data.decoding import UPRIGHT, Decoding
from stitchkit.data.dense.columns import PairRows, open_rows
from stitchkit.data.dense.layouts import PairFiles, find_pairs
from stitchkit.data.dense.maps import (
    MOST_CLASSES,
    NOT_UPRIGHT,
    Content,
    check_classes,
    header_of,
    largest_class,
    number_classes,
    read_image,
    read_mask,
)
from stitchkit.data.dense.targets import TARGETS
from stitchkit.data.labelled_images import Changes, numbered
from stitchkit.data.split_rule import names_of
from stitchkit.display import counted, listed, plural
from stitchkit.errors import InputError, one_line, unknown
from stitchkit.paths import check_local
from stitchkit.settings.tasks import DENSE, NOT_KNOWN

_MOST_HEADERS = 10_000
_MOST_MASKS = 2_000
_MOST_PIXELS = 1_000_000_000  # of the masks whose values are checked before a run: two or three seconds of decoding
_logger = logging.getLogger(__name__)


class ImagePairs(Dataset[tuple[Any, Any]]):
    """Images with their masks or depth maps.

    Item `i` is an RGB image and its target: class numbers `[H, W]` as `uint8`, where 255 is ignored; or metres `[H, W]`
    as `float32`, where 0 is unknown. Both have the same size. Reading a damaged file raises an `InputError`.
    """

    def __init__(self, source: PairFiles | PairRows, task: str, num_classes: int = 0):
        self._source = source
        self.task, self.facts, self._targets = task, DENSE[task], TARGETS[task]
        self.num_classes = num_classes
        self.classes = source.classes
        self.split = source.split
        self.names = source.names
        """File names relative to the split; the numbers of the rows of a Hugging Face data set."""
        self.decoding = Decoding()
        self._changes = Changes(len(self.names))
        self.transform: Callable[[Image, NDArray[Any]], tuple[Any, Any]] | None = None
        """Applied to an image and its target together."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the outputs at a pixel: those of the classes, or else their numbers; or that of the task."""
        return (self.classes or numbered(self.num_classes)) if self.facts.has_classes else (self.task,)

    @property
    def files(self) -> list[str]:
        """The files of the images, then those of the targets; none of a Hugging Face data set."""
        return [*self._source.images, *self._source.targets] if isinstance(self._source, PairFiles) else []

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(index)  # ends a loop over the pairs
        image, target = self._read(index % len(self))
        return (image, target) if self.transform is None else self.transform(image, target)

    def _read(self, index: int) -> tuple[Image, NDArray[Any]]:
        source, (name, content) = self._source.image(index), self._source.target(index)
        self._check_headers(source, (name, content))
        image, self._changes[index] = read_image(*source, self.decoding)
        target = self._targets.read(name, content)
        if self.facts.has_classes:
            target = number_classes(target, self.num_classes, name=name, skips_zero=self._source.skips_zero)
        return image, target

    def check_headers(self) -> None:
        """Refuse unreadable headers and pairs of different sizes before hours of training.

        At most 10,000 pairs of files are checked, evenly spread, in a second or two.
        """
        if not isinstance(self._source, PairFiles):
            return
        for index in spread(len(self), _MOST_HEADERS):
            self._check_headers(self._source.image(index), self._source.target(index))

    def check_values(self) -> None:
        """Refuse unreadable masks and unknown class numbers before hours of training.

        At most 2,000 masks are checked, evenly spread, and fewer if they are large.
        """
        if not self.facts.has_classes:
            return
        sizes = [prod(header_of("mask", *self._source.target(index))[0]) for index in spread(len(self), 20)]
        most = _MOST_PIXELS * len(sizes) // max(sum(sizes), 1)
        for index in spread(len(self), min(_MOST_MASKS, most)):
            name, content = self._source.target(index)
            numbers = read_mask(name, content)
            check_classes(numbers, self.num_classes, name=name, skips_zero=self._source.skips_zero)

    def _check_headers(self, image: tuple[str, Content], target: tuple[str, Content]) -> None:
        """Refuse a mask or a depth map of another size or, by EXIF data, another orientation than that of its image."""
        noun = self.facts.noun
        of_image, turned = header_of("image", *image)
        of_target, as_target = header_of(noun, *target)
        if of_image != of_target:
            raise InputError(
                f"image '{image[0]}' has {of_image[1]} x {of_image[0]} pixels, but its {noun} '{target[0]}' has "
                f"{of_target[1]} x {of_target[0]}; both must have the same size"
            )
        # On its side, an image that is not square fits its mask only if both are stored alike.
        is_sure = turned > 4 and of_image[0] != of_image[1]
        if self.decoding.exif and turned not in (UPRIGHT, as_target) and not is_sure:
            raise InputError(f"image '{image[0]}' {NOT_UPRIGHT.replace('map', noun)}")

    def report(self) -> None:
        """Log the images that decoding changed, once; every rank calls this."""
        self._changes.report(self.split, self.decoding)


def spread(count: int, most: int) -> Iterator[int]:
    """At most so many of `count` numbers, evenly spread."""
    chosen = min(count, most)
    return (number * count // chosen for number in range(chosen))


def open_pairs(
    root: str | Path,
    split: str,
    task: str,
    *,
    num_classes: int = 0,
    given_in: str = "",
    input_key: str = "image",
    target_key: str = "",
    download: bool = False,
) -> ImagePairs:
    """Open one split of a data set of images with masks or depth maps, by the rule of `split_rule`.

    Args:
        root: A folder as in `docs/dense.md`, or `hfds/` and a Hugging Face data set.
        num_classes: Where the data set does not say it; with 0, the masks of the training split are read to count them.
        given_in: The settings file that gives `num_classes`, for messages; a flag of a command overrules it.
        target_key: Column of masks or depth maps; empty for the first with a usual name.
    """
    if task not in DENSE:
        raise unknown("task", task, DENSE)
    check_local(split, "split")

    def found(name: str) -> PairFiles | PairRows:
        if str(root).lower().startswith("hfds/"):
            return open_rows(str(root), name, task, input_key=input_key, target_key=target_key, download=download)
        check_local(str(root), "data folder")
        return find_pairs(Path(root), name, task)

    with _readable(root):
        source = found(split)
        if DENSE[task].has_classes:
            num_classes = _agreed(source, num_classes, given_in) or _count_classes(source, found)
        else:
            num_classes = 0
    pairs = ImagePairs(source, task, num_classes)
    _logger.info("%s", _contents(pairs, source.notes))
    return pairs


@contextmanager
def _readable(root: str | Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"data folder '{root}' cannot be read ({one_line(error)}); check its permissions") from error


def _agreed(source: PairFiles | PairRows, wanted: int, given_in: str) -> int:
    """The number of classes that the data set or the caller gives; 0 if neither does."""
    if not 0 <= wanted <= MOST_CLASSES:
        raise InputError(f"num_classes is {wanted}; masks have 1 to {MOST_CLASSES} classes, and 0 counts them")
    if wanted and source.num_classes and wanted != source.num_classes:
        origin = f" (from '{given_in}')" if given_in else ""
        has = f"'{source.named_in}' names" if source.named_in else "the data set has"
        advice = f"add --num-classes {source.num_classes}" if given_in else f"omit it, or give {source.num_classes}"
        raise InputError(f"num_classes is {wanted}{origin}, but {has} {counted(source.num_classes, 'class')}; {advice}")
    return wanted or source.num_classes


def _count_classes(source: PairFiles | PairRows, open_split: Callable[[str], PairFiles | PairRows]) -> int:
    """One more than the largest class number in the training masks."""
    advice = "name the classes in classes.txt, one in each line, or give their number"
    if source.split not in names_of("train"):
        try:
            source = open_split("train")
        except InputError as error:
            raise InputError(f"the number of classes is unknown, and there are no training masks; {advice}") from error
    masks = counted(len(source.names), "mask")
    _logger.info(
        "reading the %s of the %s split to count the classes; to save this time, %s", masks, source.split, advice
    )
    largest, name, seen = -1, "", np.zeros(MOST_CLASSES, dtype=bool)
    for index in range(len(source.names)):
        path, content = source.target(index)
        numbers = read_mask(path, content)
        if (highest := largest_class(numbers)) > largest:
            largest, name = highest, path
        if largest < MOST_CLASSES:
            seen[numbers[numbers != NOT_KNOWN]] = True
    if not 0 <= largest < MOST_CLASSES:
        fault = f"mask '{name}' has the class number {largest}" if largest > 0 else "every pixel is ignored"
        raise InputError(
            f"{fault}; the masks of the {source.split} split must have class numbers from 0 to {MOST_CLASSES - 1}"
        )
    if missing := largest + 1 - int(seen.sum()):
        _logger.warning(
            "%s; %s in the masks of the %s split; the highest, %s, is in '%s'; if that is a mistake, correct "
            "it; so that such a mask is refused, %s",
            counted(largest + 1, "class"), f"{missing} never occur{'s' if missing == 1 else ''}", source.split, largest,
            name, advice,
        )  # fmt: skip
    return largest + 1


def _contents(pairs: ImagePairs, notes: str) -> str:
    known = f"{pairs.split}: {counted(len(pairs), 'image')} with {plural(pairs.facts.noun)}"
    if pairs.facts.has_classes:
        names = f" ({listed(pairs.classes)})" if pairs.classes else ""
        known += f", {counted(pairs.num_classes, 'class')}{names}"
    return known + notes

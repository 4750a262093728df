"""Classes: the order of their folders, and the names that a checkpoint was trained for."""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from itertools import zip_longest
from pathlib import Path

from stitchkit.errors import InputError

_logger = logging.getLogger(__name__)


def in_order(names: Iterable[str]) -> list[str]:
    """Names of class folders in the order of their numbers: timm's natural order, so that timm's weights fit."""

    def natural(name: str) -> list[str | Decimal]:
        # Not int, which refuses thousands of digits.
        return [Decimal(part) if index % 2 else part for index, part in enumerate(re.split(r"(\d+)", name.lower()))]

    # Names that are equal in natural order, such as 1 and 01, or A and a, are in plain order: timm sorts a set, whose
    # order differs from process to process, so two ranks would number these classes differently.
    return sorted(names, key=lambda name: (natural(name), name))


def same_text(name: str) -> str:
    """A class name in NFC: macOS writes letters with accents as two characters (NFD), other systems as one."""
    return unicodedata.normalize("NFC", name)


def trained_classes(content: Mapping[str, object]) -> list[list[str]]:
    """Class names that a checkpoint was trained for, in the order of their numbers, one list per task, if any."""
    classes = content.get("classes")
    tasks = [classes] if _are_names(classes) else classes
    return tasks if isinstance(tasks, list) and all(map(_are_names, tasks)) else []


def _are_names(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(name, str) for name in value)


def check_classes(
    trained: Sequence[Sequence[str]], own: Sequence[Sequence[str]], path: str | Path, *, strict: bool,
    train_by: str = "",
) -> None:  # fmt: skip
    """Compare the classes that the weights in a file were trained for with those of the data, task by task.

    Unknown ones pass. If `strict`, as for evaluation or a resumed run, others are refused; otherwise, weights of as
    many other classes only cause a warning.
    """
    for number, names in enumerate(own if trained else ()):
        if len(trained) == len(own):
            before = trained[number]
        else:  # other tasks: compare with the one that has these classes, if there is one
            wanted = [*map(same_text, names)]
            before = next((task for task in trained if [*map(same_text, task)] == wanted), trained[0])
        _compare(list(before), list(names), path, strict=strict, train_by=train_by)


def _compare(before: list[str], now: list[str], path: str | Path, *, strict: bool, train_by: str) -> None:
    before, now = ([same_text(str(name)) for name in names] for names in (before, now))
    if not now or before == now:
        return
    was, is_ = next(pair for pair in zip_longest(before, now) if pair[0] != pair[1])
    first = f"the first that differs was {was!r} and is {is_!r}"
    if sorted(before) == sorted(now):
        raise InputError(
            f"checkpoint '{path}' was trained on the same {len(now)} classes in another order; {first}; labels would "
            "not agree. Retrain, or restore the order in stitchkit train by --class-map"
        )
    if strict:
        start = f", or train on these: {train_by}" if train_by else ""
        raise InputError(
            f"checkpoint '{path}' was trained on {len(before)} classes, the data have {len(now)}; {first}; labels "
            f"would not agree. Give images of the classes that it knows{start}"
        )
    if len(before) == len(now):
        _logger.warning(
            "checkpoint '%s' was trained on as many classes, but different ones; %s; its classifier is only a starting "
            "point",
            path, first,
        )  # fmt: skip

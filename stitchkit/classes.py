"""Classes: the one order in which folders are numbered, and the names that a checkpoint was trained for."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

from stitchkit.errors import InputError

_logger = logging.getLogger(__name__)


def in_order(names: Iterable[str]) -> list[str]:
    """Names of class folders in the order of their numbers: timm's natural one, so that timm's weights fit."""
    # Names that are then equal, such as 1 and 01, or A and a, have their plain order: timm sorts a set, whose order
    # differs from process to process, and two ranks would number these classes differently.
    return sorted(names, key=lambda name: (_natural(name), name))


def _natural(name: str) -> list[str | int]:
    """Text and numbers by turns, as in `timm.utils.misc.natural_key`."""
    return [int(part) if place % 2 else part for place, part in enumerate(re.split(r"(\d+)", name.lower()))]


def trained_classes(content: Mapping[str, object]) -> list[list[str]]:
    """Class names that a checkpoint was trained for, in the order of their numbers, a list for each task.

    Empty where it has none, as published ones, or something else in their place.
    """
    found = content.get("classes")
    tasks = [found] if _are_names(found) else found
    return tasks if isinstance(tasks, list) and all(map(_are_names, tasks)) else []


def _are_names(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(name, str) for name in value)


def check_classes(
    trained: Sequence[Sequence[str]], here: Sequence[Sequence[str]], path: str | Path, *, strict: bool
) -> None:
    """Compare the classes that weights were trained for with those of the data, task by task; unknown ones pass.

    Args:
        trained: Names by task, as `trained_classes` gives them.
        here: Names of the data by task.
        path: The file of the weights, for the message.
        strict: The classes must be the same, as an evaluation and a resumed run need; otherwise a warning tells of
            training that starts from weights of as many other classes.

    Raises:
        InputError: If they are the same in another order, or differ where they must not.
    """
    for number, names in enumerate(here if trained else ()):
        if len(trained) == len(here):
            before = trained[number]
        else:  # trained with other tasks: the one with these classes is meant, if there is one
            before = next((one for one in trained if list(one) == list(names)), trained[0])
        _compare(list(before), list(names), path, strict=strict)


def _compare(before: list[str], now: list[str], path: str | Path, *, strict: bool) -> None:
    if not now or before == now:
        return
    was, is_ = next(pair for pair in zip_longest(before, now) if pair[0] != pair[1])
    first = f"the first that differs was {was!r} and is {is_!r}"
    if sorted(before) == sorted(map(str, now)):
        raise InputError(
            f"checkpoint '{path}' was trained on the same {len(now)} classes in another order; {first}; labels would "
            "not agree. Retrain, or for stitchkit train restore their numbers by --class-map"
        )
    if strict:
        raise InputError(
            f"checkpoint '{path}' was trained on {len(before)} classes, here are {len(now)}; {first}; labels would not "
            "agree. Give images of the classes that it knows"
        )
    if len(before) == len(now):
        _logger.warning(
            "checkpoint '%s' was trained on as many classes, but different ones; %s; its classifier is only a starting "
            "point",
            path, first,
        )  # fmt: skip


class Origin(NamedTuple):
    """The file that a network's classifier is from, and the class names that it was trained for, by task."""

    path: str
    classes: list[list[str]]


_NOTE = "classifier_origin"


def note_origin(network: object, content: Mapping[str, object], path: str | Path) -> None:
    """Note on a network that its classifier is from a file; where there are data, their classes are compared."""
    setattr(network, _NOTE, Origin(str(path), trained_classes(content)))


def carry_origin(network: object, other: object) -> None:
    """Note on another network, such as a piece, that its classifier is from where a network's is."""
    setattr(other, _NOTE, origin_of(network))


def origin_of(network: object) -> Origin | None:
    """The file that a network's classifier is from; None where it is from none."""
    found: Origin | None = getattr(network, _NOTE, None)
    return found

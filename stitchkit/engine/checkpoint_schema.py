"""Schemas of checkpoints: the content must fit, to the last key, before any of it is used.

A schema is the value that a run itself would write: a tensor stands for its shape and type, a number for its type, a
mapping for its keys, a list for its length. If more is allowed, it contains a rule, such as `whole(0)` or
`each(number())`. torch checks little of this: a fused kernel given a state of the wrong size writes past its end.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Callable, Mapping
from typing import Any

import torch

from stitchkit.errors import InputError
from stitchkit.networks.weights import misfit
from stitchkit.settings.fields import MOST_CHANNELS, MOST_SIDE

# Neither torch nor NumPy accepts larger whole numbers.
_LARGE = 2**63 - 1

Rule = Callable[[object, str], None]
"""Raises if a value, named by its place, cannot be used."""
Schema = object
"""A rule, or an example of the value."""


def check(actual: object, expected: Schema, path: str) -> None:
    """Compare a value with a schema; errors begin with its place in the file."""
    if callable(expected):
        expected(actual, path)
    elif isinstance(expected, torch.Tensor):
        if fault := misfit(path, actual, expected):
            raise InputError(fault)
    elif isinstance(expected, Mapping):
        fields(expected)(actual, path)
    elif isinstance(expected, list | tuple):
        if not isinstance(actual, list | tuple) or len(actual) != len(expected):
            raise _misfit(path, actual, f"a list of {len(expected)}")
        for index, (one, other) in enumerate(zip(actual, expected, strict=True)):
            check(one, other, f"{path}[{index}]")
    elif expected is None:  # an option that is unset here may hold a number there
        or_none(number())(actual, path)
    elif isinstance(expected, bool | str):
        rule(type(expected).__name__, lambda value: type(value) is type(expected))(actual, path)
    elif isinstance(expected, int):
        whole()(actual, path)
    elif isinstance(expected, float):
        number(finite=math.isfinite(expected))(actual, path)
    else:
        exactly(expected)(actual, path)


def rule(wanted: str, fits: Callable[[Any], bool]) -> Rule:
    """A rule: what `wanted` says in words and `fits` tests."""

    def compare(actual: object, path: str) -> None:
        if not fits(actual):
            raise _misfit(path, actual, wanted)

    return compare


def whole(low: int = -_LARGE, high: int = _LARGE) -> Rule:
    """A rule: a whole number within limits."""
    return rule(f"a whole number from {low} to {high}", lambda actual: type(actual) is int and low <= actual <= high)


def number(low: float = -math.inf, high: float = math.inf, *, finite: bool = True) -> Rule:
    """A rule: a number within limits."""

    def fits(actual: object) -> bool:
        if isinstance(actual, bool) or not isinstance(actual, int | float):
            return False
        if isinstance(actual, int) and abs(actual) > _LARGE:  # the largest overflow when Python converts them
            return False
        return not finite or (math.isfinite(actual) and low <= actual <= high)

    return rule(f"a finite number from {low} to {high}" if finite else "a number", fits)


image_size = [whole(1, MOST_CHANNELS), whole(1, MOST_SIDE), whole(1, MOST_SIDE)]
"""Size of an image, `[C, H, W]`."""
# Lone surrogates cannot be encoded, so a message could not print them either.
text = rule("text", lambda actual: isinstance(actual, str) and not re.search("[\ud800-\udfff]", actual))
"""A rule: text that can be encoded."""
anything = rule("anything", lambda _: True)
"""A rule: any value, which is checked elsewhere."""


def exactly(value: object) -> Rule:
    """A rule: this value and no other."""

    def is_same(actual: object) -> bool:
        try:
            return type(actual) is type(value) and bool(actual == value)
        except RuntimeError:  # lists with tensors in them do not compare
            return False

    return rule(in_short(repr(value)), is_same)


def or_none(value: Schema) -> Rule:
    """A rule: None, or a value that fits the schema."""

    def compare(actual: object, path: str) -> None:
        if actual is not None:
            check(actual, value, path)

    return compare


def fields(needed: Mapping[Any, Schema], optional: Mapping[Any, Schema] | None = None) -> Rule:
    """A rule: a mapping with all `needed` keys, any of the `optional` ones and no others."""
    known = {**(optional or {}), **needed}

    def compare(actual: object, path: str) -> None:
        values = _mapping(actual, path)
        if missing := [key for key in needed if key not in values]:
            raise InputError(f"{_within(path, missing[0])} is missing")
        if strange := [key for key in values if key not in known]:
            raise InputError(f"{_within(path, strange[0])} is unexpected")
        for key, value in values.items():
            check(value, known[key], _within(path, key))

    return compare


def table(key: Rule, value: Schema) -> Rule:
    """A rule: a mapping of any size."""

    def compare(actual: object, path: str) -> None:
        for name, item in _mapping(actual, path).items():
            key(name, f"a key of {path}")
            check(item, value, _within(path, name))

    return compare


def each(value: Schema) -> Rule:
    """A rule: a list of any length."""

    def compare(actual: object, path: str) -> None:
        if not isinstance(actual, list | tuple):
            raise _misfit(path, actual, "a list")
        check(actual, [value] * len(actual), path)

    return compare


def plain(actual: object, path: str) -> None:
    """A rule: data that JSON and YAML can hold."""
    if isinstance(actual, Mapping):
        table(text, plain)(actual, path)
    elif isinstance(actual, list | tuple):
        each(plain)(actual, path)
    elif actual is not None and not isinstance(actual, str | bool | float):
        whole()(actual, path)


def like(own: object, moving: Mapping[str, Schema]) -> Schema:
    """The schema of a state that equals a run's own, except for the keys of `moving`, which has their rules."""
    if isinstance(own, Mapping):
        return {key: moving[key] if key in moving else like(value, moving) for key, value in own.items()}
    if isinstance(own, list | tuple):
        return [like(value, moving) for value in own]
    return own if isinstance(own, torch.Tensor) or callable(own) else exactly(own)


def _mapping(actual: object, path: str) -> Mapping[object, object]:
    if not isinstance(actual, Mapping):
        raise _misfit(path, actual, "a mapping")
    return actual


def _within(path: str, key: object) -> str:
    # Other types of keys are not printed: their text may have many lines, or none.
    inner = f"[{key}]" if isinstance(key, int) else f".{key}" if isinstance(key, str) else f"[{type(key).__name__}]"
    return in_short(f"{path}{inner}".removeprefix("."), 120)


def _misfit(path: str, actual: object, wanted: str) -> InputError:
    shown = type(actual).__name__ if isinstance(actual, torch.Tensor) else in_short(reprlib.repr(actual))
    return InputError(f"{path} is {shown}, not {wanted}")


def in_short(words: str, most: int = 60) -> str:
    """The text on one line, cut to at most `most` characters."""
    line = " ".join(words.split())
    return line if len(line) <= most else f"{line[: most - 4]} ..."

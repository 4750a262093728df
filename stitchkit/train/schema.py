"""What a file with the state of a run must hold, to the last key, compared before anything of it is used.

A schema is what a run would itself have there: a tensor stands for its shape and type, a number for its type, a mapping
for its keys, a list for its length. Where more is allowed stands a rule, such as `whole(0)` or `each(number())`.
torch checks little of this: a fused kernel given a state of another size writes past its end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from stitchkit.errors import InputError

Rule = Callable[[Any, str], None]
"""Raises for a value, named by its place, that cannot be used."""


def check(found: Any, expected: Any, place: str) -> None:
    """Compare a value with a schema.

    Args:
        found: What the file has.
        expected: The schema.
        place: Where in the file it stands; errors begin with it.

    Raises:
        InputError: If it does not fit.
    """
    if callable(expected):
        expected(found, place)
    elif isinstance(expected, torch.Tensor):
        _check_tensor(found, expected, place)
    elif isinstance(expected, Mapping):
        fields(expected)(found, place)
    elif isinstance(expected, list | tuple):
        if not isinstance(found, list | tuple) or len(found) != len(expected):
            raise _misfit(place, found, f"a list of {len(expected)}")
        for index, (one, other) in enumerate(zip(found, expected, strict=True)):
            check(one, other, f"{place}[{index}]")
    elif expected is None:
        if found is not None:
            number()(found, place)
    elif isinstance(expected, bool | str):
        if type(found) is not type(expected):
            raise _misfit(place, found, type(expected).__name__)
    elif isinstance(expected, int):
        whole()(found, place)
    elif isinstance(expected, float):
        number(finite=math.isfinite(expected))(found, place)
    else:
        exactly(expected)(found, place)


def _check_tensor(found: Any, expected: torch.Tensor, place: str) -> None:
    kind = f"{str(expected.dtype).removeprefix('torch.')} {list(expected.shape)}"
    if not isinstance(found, torch.Tensor) or found.layout != torch.strided or found.shape != expected.shape:
        raise _misfit(place, found, kind)
    # Precision may change with settings; what is whole stays whole.
    if found.dtype != expected.dtype and not (found.is_floating_point() and expected.is_floating_point()):
        raise _misfit(place, found, kind)
    if not found.isfinite().all() and expected.isfinite().all():  # a mask holds infinities by right
        raise InputError(f"{place} is not finite")


def fields(needed: Mapping[Any, Any], optional: Mapping[Any, Any] | None = None) -> Rule:
    """A mapping with all of the first keys, some of the second and no others."""
    further = optional or {}

    def rule(found: Any, place: str) -> None:
        if not isinstance(found, Mapping):
            raise _misfit(place, found, "a mapping")
        if missing := [key for key in needed if key not in found]:
            raise InputError(f"{_within(place, missing[0])} is missing")
        if strange := [key for key in found if key not in needed and key not in further]:
            raise InputError(f"{_within(place, strange[0])} does not belong there")
        for key, value in found.items():
            check(value, needed[key] if key in needed else further[key], _within(place, key))

    return rule


def table(key: Rule, value: Any) -> Rule:
    """A mapping of any size."""

    def rule(found: Any, place: str) -> None:
        if not isinstance(found, Mapping):
            raise _misfit(place, found, "a mapping")
        for name, item in found.items():
            key(name, f"a key of {place}")
            check(item, value, _within(place, name))

    return rule


def each(value: Any) -> Rule:
    """A list of any length."""

    def rule(found: Any, place: str) -> None:
        if not isinstance(found, list | tuple):
            raise _misfit(place, found, "a list")
        for index, item in enumerate(found):
            check(item, value, f"{place}[{index}]")

    return rule


def whole(low: int | None = None, high: int | None = None) -> Rule:
    """A whole number within limits."""
    limits = f" from {low}" * (low is not None) + f" to {high}" * (high is not None)

    def rule(found: Any, place: str) -> None:
        is_whole = isinstance(found, int) and not isinstance(found, bool)
        if not is_whole or (low is not None and found < low) or (high is not None and found > high):
            raise _misfit(place, found, f"a whole number{limits}")

    return rule


def number(*, finite: bool = True) -> Rule:
    """A number."""

    def rule(found: Any, place: str) -> None:
        if not isinstance(found, int | float) or isinstance(found, bool) or (finite and not math.isfinite(found)):
            raise _misfit(place, found, f"a{' finite' * finite} number")

    return rule


def text(found: Any, place: str) -> None:
    """A rule: text."""
    check(found, "", place)


def anything(_: Any, __: str) -> None:
    """A rule: what is looked at elsewhere."""


def either(rule: Any, other: Any) -> Rule:
    """What fits the first schema, or else the second."""

    def both(found: Any, place: str) -> None:
        try:
            check(found, other, place)
        except InputError:
            check(found, rule, place)

    return both


def nothing(found: Any, place: str) -> None:
    """A rule: None."""
    if found is not None:
        raise _misfit(place, found, "nothing")


def exactly(values: Any) -> Rule:
    """A rule: these values and no others."""

    def rule(found: Any, place: str) -> None:
        if type(found) is not type(values) or found != values:
            raise _misfit(place, found, in_short(repr(values)))

    return rule


def _within(place: str, key: Any) -> str:
    inner = f"[{key}]" if isinstance(key, int) else f".{key}" if isinstance(key, str) else f"[{key!r}]"
    return in_short(f"{place}{inner}".removeprefix("."), 120)


def _misfit(place: str, found: Any, wanted: str) -> InputError:
    if isinstance(found, torch.Tensor):
        said = f"{str(found.dtype).removeprefix('torch.')} {list(found.shape)}"
    else:
        said = in_short(repr(found))
    return InputError(f"{place} is {said}, not {wanted}")


def in_short(words: str, most: int = 60) -> str:
    """Words in one line, cut where there are too many.

    Args:
        words: What is said.
        most: Most characters.
    """
    line = " ".join(words.split())
    return line if len(line) <= most else f"{line[: most - 4]} ..."

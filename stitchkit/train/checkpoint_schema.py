"""What a file with the state of a run must hold, to the last key, compared before anything of it is used.

A schema is what a run would itself have there: a tensor stands for its shape and type, a number for its type, a mapping
for its keys, a list for its length. Where more is allowed stands a rule, such as `whole(0)` or `each(number())`.
torch checks little of this: a fused kernel given a state of another size writes past its end.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Mapping
from typing import Any

import torch

from stitchkit.errors import InputError
from stitchkit.networks.weights import misfit

_LARGE = 2**63 - 1

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
    if fault := misfit(place, found, expected):
        raise InputError(fault)


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
    least, most = (-_LARGE if low is None else low), (_LARGE if high is None else high)

    def rule(found: Any, place: str) -> None:
        if not isinstance(found, int) or isinstance(found, bool) or not least <= found <= most:
            raise _misfit(place, found, f"a whole number from {least} to {most}")

    return rule


def number(low: float = -math.inf, high: float = math.inf, *, finite: bool = True) -> Rule:
    """A number within limits."""

    def rule(found: Any, place: str) -> None:
        is_number = isinstance(found, int | float) and not isinstance(found, bool)
        if not is_number or (isinstance(found, int) and abs(found) > _LARGE):
            raise _misfit(place, found, "a number")
        if finite and not (math.isfinite(found) and low <= found <= high):
            raise _misfit(place, found, f"a finite number from {low} to {high}")

    return rule


def text(found: Any, place: str) -> None:
    """A rule: text that can be written."""
    check(found, "", place)
    try:
        found.encode()
    except UnicodeEncodeError as error:
        raise _misfit(place, found, "text") from error


def anything(_: Any, __: str) -> None:
    """A rule: what is looked at elsewhere."""


def either(usual: Any, other: Any) -> Rule:
    """What fits one of two schemas; an error is that of the usual one."""

    def rule(found: Any, place: str) -> None:
        try:
            check(found, other, place)
        except InputError:
            check(found, usual, place)

    return rule


def nothing(found: Any, place: str) -> None:
    """A rule: None."""
    if found is not None:
        raise _misfit(place, found, "nothing")


def plain(found: Any, place: str) -> None:
    """A rule: what JSON and YAML can say."""
    if isinstance(found, Mapping):
        for key, value in found.items():
            text(key, f"a key of {place}")
            plain(value, _within(place, key))
    elif isinstance(found, list | tuple):
        for index, value in enumerate(found):
            plain(value, f"{place}[{index}]")
    elif found is not None and not isinstance(found, str | bool | float):
        whole()(found, place)


def exactly(value: Any) -> Rule:
    """A rule: this value and no other."""

    def rule(found: Any, place: str) -> None:
        try:
            is_same = type(found) is type(value) and bool(found == value)
        except RuntimeError:  # of a tensor in a list
            is_same = False
        if not is_same:
            raise _misfit(place, found, in_short(repr(value)))

    return rule


def like(own: Any, moving: Mapping[str, Rule]) -> Any:
    """The schema of a state that is as this run's own, but for what moves on while a run does.

    Args:
        own: The state of this run.
        moving: Rules by key, wherever in the state it stands.
    """
    if isinstance(own, Mapping):
        return {key: moving[key] if key in moving else like(value, moving) for key, value in own.items()}
    if isinstance(own, list | tuple):
        return [like(value, moving) for value in own]
    return own if isinstance(own, torch.Tensor) or callable(own) else exactly(own)


def _within(place: str, key: Any) -> str:
    inner = f"[{key}]" if isinstance(key, int) else f".{key}" if isinstance(key, str) else f"[{type(key).__name__}]"
    return in_short(f"{place}{inner}".removeprefix("."), 120)


def _misfit(place: str, found: Any, wanted: str) -> InputError:
    said = type(found).__name__ if isinstance(found, torch.Tensor) else in_short(reprlib.repr(found))
    return InputError(f"{place} is {said}, not {wanted}")


def in_short(words: str, most: int = 60) -> str:
    """Words in one line, cut where there are too many.

    Args:
        words: What is said.
        most: Most characters.
    """
    line = " ".join(words.split())
    return line if len(line) <= most else f"{line[: most - 4]} ..."

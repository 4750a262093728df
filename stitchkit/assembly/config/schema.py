"""From plain data to dataclasses: unknown keys and wrong types are errors that name their place."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from stitchkit.errors import InputError, unknown

Settings = TypeVar("Settings")

_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def parse(kind: type[Settings], content: object, place: str = "") -> Settings:
    """A dataclass of settings from a mapping; its fields' types say what is allowed.

    Args:
        kind: The dataclass.
        content: What a file has there.
        place: Where in the file it stands; errors begin with it.

    Raises:
        InputError: If a key is unknown or missing, or a value has the wrong type.
    """
    if not isinstance(content, Mapping):
        raise InputError(f"{place} is {content!r}; it holds settings as 'name: value' lines")
    hints, known = get_type_hints(kind), {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    for key in content:
        if key not in known:
            raise InputError(f"{_join(place, str(key))}: {unknown('key', str(key), known)}")
    for name, field in known.items():
        if name not in content and field.default is MISSING and field.default_factory is MISSING:
            raise InputError(f"{_join(place, name)} is missing; the file has to give it")
    return kind(**{key: _value(hints[key], value, _join(place, key)) for key, value in content.items()})


def _join(place: str, key: str) -> str:
    return f"{place}.{key}" if place else key


def _value(kind: Any, value: Any, place: str) -> Any:
    """A value, if it is what a type allows."""
    origin, options = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _one_of(options, value, place)
    if kind is Any:
        return value
    if origin is Literal:
        if value not in options:
            raise InputError(f"{place}: {unknown('value', str(value), map(str, options))}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise InputError(f"{place} is {value!r}; it must be a list")
        return tuple(_value(options[0], item, f"{place}[{number}]") for number, item in enumerate(value))
    if origin in (dict, Mapping):
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise InputError(f"{place} is {value!r}; it holds settings as 'name: value' lines")
        return dict(value)
    if is_dataclass(kind):
        return parse(kind, value, place)  # type: ignore[arg-type]
    return _plain(kind, value, place)


def _one_of(options: tuple[Any, ...], value: Any, place: str) -> Any:
    """A value that may be of several types; the error is that of the first, which is the usual one."""
    if value is None and type(None) in options:
        return None
    first: InputError | None = None
    for kind in options:
        if kind is type(None):
            continue
        try:
            return _value(kind, value, place)
        except InputError as error:
            first = first or error
    assert first is not None
    raise first


def _plain(kind: Any, value: Any, place: str) -> Any:
    is_right = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not is_right:
        raise InputError(f"{place} is {value!r}; it must be {_NAMES[kind]}")
    return value

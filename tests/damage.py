"""Checkpoints damaged at every place, in every way that a reader might take for good."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from copy import copy
from functools import partial
from typing import Any

import torch

Place = tuple[Any, ...]
"""Keys and numbers that lead to a value."""


def places(content: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Every value in a content and where it is; of a long list the first two and the last."""
    if place:
        yield place, content
    if isinstance(content, Mapping):
        for key, value in content.items():
            yield from places(value, (*place, key))
    elif isinstance(content, list | tuple):
        for number in sorted({0, 1, len(content) - 1} & set(range(len(content)))):
            yield from places(content[number], (*place, number))


def damages(content: Any) -> Iterator[tuple[str, Any]]:
    """What is wrong and the damaged content, for every place and every way; the content itself stays."""
    for place, value in places(content):
        above, key = place[:-1], place[-1]
        for way, worse in _worse(value):
            yield f"{_named(place)}: {way}", _with(content, place, partial(_replaced, by=worse))
        if isinstance(_at(content, above), Mapping):
            yield f"{_named(place)}: missing", _with(content, above, partial(_without, key=key))
        if isinstance(value, Mapping):
            yield f"{_named(place)}: a further key", _with(content, place, lambda inner: {**inner, "further": 1})
            yield f"{_named(place)}: a further number", _with(content, place, lambda inner: {**inner, 10**6: 1})
    yield "a further key", {**content, "further": 1}


def _worse(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, torch.Tensor):
        yield "a tensor of three", torch.ones(3, dtype=value.dtype)
        yield "an empty tensor", torch.ones(0, dtype=value.dtype)
        yield "a further axis", value[None]
        yield "complex", value.to(torch.complex64)
        yield "a list", value.tolist()
        yield (
            "without memory of its own",
            value.new_zeros(1).expand(max(value.numel(), 2))
            if value.ndim < 2
            else (value.new_zeros(1).expand(value.shape)),
        )
        yield "without values", torch.empty(value.shape, dtype=value.dtype, device="meta")
        yield "sparse", value[None].to_sparse()
        if value.is_floating_point() and value.numel():
            yield "not a number", _first(value, float("nan"))
            yield "infinite", _first(value, float("inf"))
            yield "whole", value.to(torch.int32)
            yield "unsigned", value.abs().to(torch.uint16)
            yield "of one byte", value.to(torch.float8_e4m3fn)
            yield "beyond our precision", _first(value.double(), 1e300)
        elif value.numel():
            yield "real", value.to(torch.float32)
        return
    if isinstance(value, Mapping):
        yield "a list", [1]
        yield "empty", {}
    elif isinstance(value, list | tuple):
        yield "shorter", value[:-1]
        yield "longer", [*value, *value[-1:], 1]
        yield "a mapping", {"x": 1}
    elif isinstance(value, float):
        yield "not a number", float("nan")
    elif isinstance(value, int) and not isinstance(value, bool):
        yield "half", value + 0.5
        yield "text of it", str(value)
        yield "far below", -(10**30)
    yield "another type", 3 if isinstance(value, str) else "x"
    yield "a tensor", torch.ones(2)
    if value is not None:
        yield "nothing", None


def _first(value: torch.Tensor, other: float) -> torch.Tensor:
    worse = value.clone()
    worse.view(-1)[0] = other
    return worse


def _replaced(_: object, by: object) -> object:
    return by


def _without(inner: Mapping[Any, Any], key: Any) -> dict[Any, Any]:
    return {name: value for name, value in inner.items() if name != key}


def _at(content: Any, place: Place) -> Any:
    for key in place:
        content = content[key]
    return content


def _with(content: Any, place: Place, change: Callable[[Any], Any]) -> Any:
    """The content with a change at a place; all beside the way there is shared."""
    if not place:
        return change(content)
    key, rest = place[0], place[1:]
    if isinstance(content, Mapping):
        return {**content, key: _with(content[key], rest, change)}
    changed = list(copy(content))
    changed[key] = _with(content[key], rest, change)
    return type(content)(changed)


def _named(place: Place) -> str:
    return ".".join(map(str, place))

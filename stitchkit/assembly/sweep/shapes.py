"""Input and output shapes of a network's slices, from a dry run, compared with the declared ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

import torch

from stitchkit.assembly.parts.network import check_network
from stitchkit.assembly.parts.spec import NetworkSpec, PartSpec
from stitchkit.errors import InputError
from stitchkit.networks.layout import Layout


class SliceShapes(NamedTuple):
    """The full layouts of a slice's input and output.

    Args:
        takes: None for the first slice, which takes an image.
        gives: None for the last slice, which returns logits.
    """

    takes: Layout | None
    gives: Layout | None


def slice_shapes(slices: Sequence[PartSpec], image_size: int) -> tuple[SliceShapes, ...]:
    """Input and output shapes of each slice of a network, found without weights and memory.

    Args:
        slices: All slices of the network.
        image_size: Side of an image.
    """
    for key, some in (("out_format", slices[:-1]), ("in_format", slices)):
        for spec in some:
            _declared(spec, key)  # an unknown format is reported before anything is built
    found = _run_dry(slices, image_size)
    for spec, (takes, gives) in zip(slices, found, strict=True):
        _compare(spec, "in_format", "takes", takes)
        _compare(spec, "out_format", "returns", gives)
    return found


def _declared(spec: PartSpec, key: str) -> Layout | None:
    value = spec.arguments.get(key)
    with _at(spec, key):
        return None if value is None else Layout.parse(value)


@contextmanager
def _at(spec: PartSpec, key: str) -> Iterator[None]:
    """Begin errors with the place of a slice's format."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{spec.place}.{spec.name}.{key}: {error}") from error


def _compare(spec: PartSpec, key: str, does: str, shape: Layout | None) -> None:
    """Compare a declared format with the actual shape."""
    declared = _declared(spec, key)
    if declared is None or shape is None:
        return
    if declared.channels in (None, shape.channels) and declared.positions in (None, shape.positions):
        return
    with _at(spec, key):
        raise InputError(f"it is {declared}, but the slice {does} {shape}; correct one of them")


def _run_dry(slices: Sequence[PartSpec], image_size: int) -> tuple[SliceShapes, ...]:
    # On the meta device nothing is computed: twelve published sweeps are planned in seconds, without weights.
    with torch.device("meta"):
        size = (3, image_size, image_size)
        # Without declared sizes nothing is resized, so each slice shows its own shapes; only images may be resized.
        first = without_sizes(slices[0], "out_format")
        bare = (first, *(without_sizes(spec, "in_format", "out_format") for spec in slices[1:]))
        network = check_network(NetworkSpec(bare), num_classes=1, input_size=size, pretrained=False).eval()
        x = torch.empty(2, *size)
    taken: list[Layout | None] = []
    given: list[Layout | None] = []
    with torch.no_grad():
        for part, enter, spec in zip(network.parts, network.entries, slices, strict=True):
            before = given[-1] if given else None
            x = enter(x)
            taken.append(None if before is None else _shape(x, spec, "in_format", before))
            x = part(x)
            if len(taken) < len(slices) and _declared(spec, "out_format") is None:
                raise InputError(f"{spec.place} has no out_format, which a sweep needs; declare img, token or bert")
            given.append(_shape(x, spec, "out_format") if len(taken) < len(slices) else None)
    return tuple(map(SliceShapes, taken, given))


def without_sizes(spec: PartSpec, *keys: str) -> PartSpec:
    """A slice whose formats under these keys are declared by name only, without sizes."""
    names = {key: found.name for key in keys if (found := _declared(spec, key))}
    return replace(spec, arguments={**spec.arguments, **names})


def _shape(x: torch.Tensor, spec: PartSpec, key: str, otherwise: Layout | None = None) -> Layout:
    """The full layout of a tensor, in the format that a slice declares."""
    layout = _declared(spec, key) or otherwise
    assert layout is not None
    with _at(spec, key):
        shape = layout.sized(x)
        if not shape.positions:
            raise InputError(f"it is {layout}, which has no positions; only the last slice may return that")
        height, width = shape.grid
        if height != width:
            raise InputError(f"{shape} is not square; sweeps need square images")
    return shape

"""Input and output shapes of a network's slices, from a dry run, compared with the declared ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from stitchkit.assembly.parts.network import check_network
from stitchkit.assembly.parts.spec import NetworkSpec, PartSpec
from stitchkit.errors import InputError
from stitchkit.networks.layout import Layout


@dataclass(frozen=True, kw_only=True)
class SweepSlice(PartSpec):
    """A slice of a network of a sweep, which is a part of a job, with its shapes.

    Args:
        takes: The full layout of its input.
        gives: The full layout of its output; without sizes for the last slice, which returns logits.
    """

    takes: Layout
    gives: Layout


def find_shapes(parts: Sequence[PartSpec], image_size: tuple[int, int]) -> tuple[SweepSlice, ...]:
    """The slices of a network with their shapes for images of this side, found without weights and memory."""
    # Without declared sizes nothing is resized, so each slice shows its own shapes; only images may be resized.
    first = without_sizes(parts[0], "out_format")
    bare = (first, *(without_sizes(part, "in_format", "out_format") for part in parts[1:]))
    size = (3, *image_size)
    # On the meta device nothing is computed: twelve published sweeps are planned in seconds, without weights.
    network, _ = check_network(NetworkSpec(bare), num_classes=1, input_size=size, replaced=True)
    network.eval()
    x, layout = torch.empty(2, *size, device="meta"), Layout("NCHW")
    slices = []
    with torch.no_grad():
        for part, enter, module in zip(parts, network.entries, network.parts, strict=True):
            x = enter(x)
            takes = _shape(x, part, "in_format", _declared(part, "in_format") or layout)
            x = module(x)
            layout = Layout("vector")
            if part is not parts[-1]:
                declared = _declared(part, "out_format")
                if declared is None:
                    raise InputError(f"{part.place} has no out_format, which a sweep needs; declare img, token or bert")
                layout = _shape(x, part, "out_format", declared)
            slices.append(SweepSlice(part.name, part.arguments, part.place, takes=takes, gives=layout))
    return tuple(slices)


def without_sizes(part: PartSpec, *keys: str) -> PartSpec:
    """A slice whose formats under these keys are declared by name only, without sizes."""
    names = {key: found.name for key in keys if (found := _declared(part, key))}
    return replace(part, arguments={**part.arguments, **names})


def _declared(part: PartSpec, key: str) -> Layout | None:
    value = part.arguments.get(key)
    with _at(part, key):
        return None if value is None else Layout.parse(value)


def _shape(x: torch.Tensor, part: PartSpec, key: str, layout: Layout) -> Layout:
    """The full layout of a slice's input or output, whose declared sizes must be those of the tensor."""
    with _at(part, key):
        shape = layout.sized(x)
        if not shape.positions:
            raise InputError(f"it is {layout}, which has no positions; only the last slice may return that")
        height, width = shape.grid
        if height != width:
            raise InputError(f"{shape} is not square; sweeps need square images")
        if layout.channels not in (None, shape.channels) or layout.positions not in (None, shape.positions):
            does = "takes" if key == "in_format" else "returns"
            raise InputError(f"it is {layout}, but the slice {does} {shape}; correct one of them")
    return shape


@contextmanager
def _at(part: PartSpec, key: str) -> Iterator[None]:
    """Begin errors with the place of a slice's format."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{part.place}.{part.name}.{key}: {error}") from error

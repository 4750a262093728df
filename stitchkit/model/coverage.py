"""Whether the maps of an anchor cover the whole image: patches that do not fit into it drop pixels at its edges."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from math import prod

import torch
from torch import nn

from stitchkit.errors import InputError
from stitchkit.model.levels import grid_of
from stitchkit.networks.anchor import Anchor
from stitchkit.networks.layout import Layout
from stitchkit.networks.mode import evaluating

_logger = logging.getLogger(__name__)

Sides = tuple[int, ...]


def check_coverage(anchor: Anchor) -> None:
    """Refuse images that are no whole number of patches: predictions for the rest would be stretched over all of it."""
    if words := _uncovered(anchor):
        raise InputError(f"anchor '{anchor.label}' sees {words}")


def warn_of_borders(anchors: Iterable[Anchor]) -> None:
    """Log which anchors do not see the edge of their images, which classes of whole images can do without."""
    labels: dict[str, list[str]] = {}
    for anchor in anchors:
        labels.setdefault(_uncovered(anchor), []).append(anchor.label)
    for words, names in labels.items():
        if words:
            _logger.warning("%s %s", f"{', '.join(names)} see{'' if names[1:] else 's'}", words)


def fits_any_patches(model: nn.Module, sides: Sides) -> bool:
    """Whether images of these sides are a whole number of patches, however a network cuts them."""
    total = [prod(part.stride[axis] for part in _patching(model)) for axis in (0, 1)]
    return not any(side % most for side, most in zip(sides, total, strict=True))


def _uncovered(anchor: Anchor) -> str:
    """What an anchor sees of its images if patches do not cover them, in words; empty if they do.

    Convolutions that overlap, as those of a ResNet, pad their input; their maps are rounded up, and cover it.
    """
    sides = anchor.input_size[1:]
    if fits_any_patches(anchor.model, sides):
        return ""  # as for all usual sizes, without a pass
    patchings = _on_the_way(anchor)
    if not any(side % length for patching in patchings for side, length in zip(*patching, strict=True)):
        return ""
    # What comes before the first patches may make the map smaller, too.
    factors = [
        prod(patch[axis] for _, patch in patchings) * max(1, round(sides[axis] / patchings[0][0][axis]))
        for axis in (0, 1)
    ]
    fitting = [
        tuple(max(1, side // factor + more) * factor for side, factor in zip(sides, factors, strict=True))
        for more in (0, 1)
    ]
    nearest = " or ".join(f"{height} x {width}" for height, width in dict.fromkeys(fitting))
    rows, columns = (side % factor for side, factor in zip(sides, factors, strict=True))
    return (
        f"whole patches of {factors[0]} x {factors[1]} pixels, and not the last {rows} rows and {columns} columns of "
        f"images of {sides[0]} x {sides[1]}; choose the size (--img-size) {nearest}"
    )


def _patching(model: nn.Module) -> list[nn.Conv2d]:
    """The layers that cut maps into patches."""
    layers = [part for part in model.modules() if isinstance(part, nn.Conv2d)]
    return [
        layer
        for layer in layers
        if layer.kernel_size == layer.stride and layer.padding in ("valid", (0, 0)) and prod(layer.stride) > 1
    ]


def _on_the_way(anchor: Anchor) -> list[tuple[Sides, Sides]]:
    """Where patches are cut between the image and the last block: height and width of the map, and of a patch.

    Some blocks cut patches for their attention alone, and keep the size of their map.
    """
    recorded: list[tuple[Sides, Sides]] = []

    def record(part: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        assert isinstance(part, nn.Conv2d)
        recorded.append((tuple(inputs[0].shape[-2:]), tuple(part.stride)))

    hooks = [part.register_forward_pre_hook(record) for part in _patching(anchor.model)]
    try:
        with evaluating(anchor.model), torch.no_grad():
            x = anchor[0](anchor.blank_image())
            on_the_way = [*recorded]
            layouts = [boundary.layout for boundary in anchor.boundaries]
            for block, before, after in zip(anchor.blocks, layouts, layouts[1:], strict=False):
                recorded.clear()
                x = block(x)
                ends = tuple(_grid(layout, anchor.input_size[1:]) for layout in (before, after))
                for sides, patch in recorded:
                    if ends == (sides, tuple(side // length for side, length in zip(sides, patch, strict=True))):
                        on_the_way.append((sides, patch))
    finally:
        for hook in hooks:
            hook.remove()
    return on_the_way


def _grid(layout: Layout, sides: tuple[int, ...]) -> Sides | None:
    try:
        return tuple(grid_of(layout, (sides[0], sides[1])))
    except InputError:  # tokens in no order of rows
        return None

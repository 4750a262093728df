"""Whether the maps of an anchor cover the whole image: patches that do not fit into it drop pixels at its edges."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from math import prod
from typing import NamedTuple

import torch
from torch import nn

from stitchkit.errors import InputError
from stitchkit.model.levels import grid_of
from stitchkit.networks.anchor import Anchor
from stitchkit.networks.layout import Layout
from stitchkit.networks.mode import evaluating

_logger = logging.getLogger(__name__)

Sides = tuple[int, ...]


class _Patching(NamedTuple):
    """A map that was cut into patches.

    Args:
        before: Its height and width.
        patch: Those of a patch.
    """

    before: Sides
    patch: Sides

    @property
    def after(self) -> Sides:
        """Rows and columns of whole patches."""
        return tuple(side // length for side, length in zip(self.before, self.patch, strict=True))

    @property
    def drops(self) -> bool:
        """Whether pixels are left over."""
        return any(side % length for side, length in zip(self.before, self.patch, strict=True))


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
    if not any(patching.drops for patching in patchings):
        return ""
    # What comes before the first patches may make the map smaller, too.
    factors = [
        prod(patching.patch[axis] for patching in patchings) * max(1, round(sides[axis] / patchings[0].before[axis]))
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


def _on_the_way(anchor: Anchor) -> list[_Patching]:
    """Where patches are cut between the image and the last block.

    Some blocks cut patches for their attention alone, and keep the size of their map.
    """
    with evaluating(anchor.model), torch.no_grad(), _recorded(anchor.model) as recorded:
        x = anchor[0](anchor.blank_image())
        on_the_way = [*recorded]
        layouts = [boundary.layout for boundary in anchor.boundaries]
        for block, before, after in zip(anchor.blocks, layouts, layouts[1:], strict=False):
            recorded.clear()
            x = block(x)
            ends = tuple(_grid(layout, anchor.input_size[1:]) for layout in (before, after))
            on_the_way += [patching for patching in recorded if (patching.before, patching.after) == ends]
    return on_the_way


@contextmanager
def _recorded(model: nn.Module) -> Iterator[list[_Patching]]:
    """Where a network cuts patches from now on, within the context."""
    patchings: list[_Patching] = []

    def record(part: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        assert isinstance(part, nn.Conv2d)
        patchings.append(_Patching(tuple(inputs[0].shape[-2:]), tuple(part.stride)))

    hooks = [part.register_forward_pre_hook(record) for part in _patching(model)]
    try:
        yield patchings
    finally:
        for hook in hooks:
            hook.remove()


def _grid(layout: Layout, sides: tuple[int, ...]) -> Sides | None:
    try:
        return tuple(grid_of(layout, (sides[0], sides[1])))
    except InputError:  # tokens in no order of rows
        return None

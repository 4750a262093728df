"""Levels: the features of a route at several depths, at the widths of the last anchor."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from math import isqrt, prod
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

from stitchkit.errors import InputError
from stitchkit.model.layer import StitchLayer, layouts_at
from stitchkit.networks.anchor import Anchor
from stitchkit.networks.layout import Layout
from stitchkit.routes import Joint
from stitchkit.routes.levels import Levels

_Step = TypeVar("_Step")


class Level(NamedTuple):
    """The features of a route at one depth.

    Args:
        map: `[B, C, H, W]`.
        prefix: The prefix tokens `[B, P, C]`, such as the class token, which comes first; None if there are none.
    """

    map: torch.Tensor
    prefix: torch.Tensor | None = None


class LevelInfo(NamedTuple):
    """What a head knows of a level.

    Args:
        channels: Of its map.
        reduction: By how much the map is smaller than the image.
        num_prefix_tokens: Prefix tokens beside the map.
        block: The block of the last anchor right before it, counted over all stages.
    """

    channels: int
    reduction: int
    num_prefix_tokens: int
    block: int = 0


class LevelTap(nn.Module):
    """Takes a level from the activations of a route, which it leaves as they are.

    Args:
        layer: Maps them to the width of the last anchor; None if they are its own.
        layout: The full layout of the last anchor at the level.
        sides: Height and width of the images.
    """

    def __init__(self, layer: StitchLayer | None, layout: Layout, sides: tuple[int, int]):
        super().__init__()
        self.layer = layer
        self._layout = layout.bare
        self._grid = grid_of(layout, sides)

    def forward(self, x: torch.Tensor) -> Level:
        """The level, e.g. of tokens `[B, N, C]` a map `[B, C', H, W]` and prefix tokens `[B, P, C']`."""
        features, prefix = self._layout.split(x if self.layer is None else self.layer(x))
        return Level(features.reshape(*features.shape[:2], *self._grid), None if prefix is None else prefix.mT)


def levels_along(walk: Callable[[_Step, torch.Tensor], Any], x: torch.Tensor, steps: Iterable[_Step]) -> list[Level]:
    """The levels of images `[B, C, H, W]`, from the first to the last, if `walk` runs a step on its input."""
    levels = []
    for step in steps:
        output = walk(step, x)
        if isinstance(output, Level):
            levels.append(output)
        else:
            x = output
    return levels


def grid_of(layout: Layout, sides: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of a full layout, whose tokens have the proportions of the images."""
    if layout.is_map:
        return layout.grid
    length = prod(layout.positions or ())
    stride = isqrt(prod(sides) // max(length, 1)) or 1
    grid = (sides[0] // stride, sides[1] // stride)
    if layout.is_vector or not layout.is_by_row or prod(grid) != length:
        raise InputError(f"{layout} has no rows and columns, which a level needs; choose other levels or anchors")
    return grid


class LevelLayers(nn.ModuleDict):
    """The stitching layers that only levels have, by the number of the anchor and the block of the last anchor.

    Args:
        levels: The levels of a network; without any, there are no such layers.
        views: Its anchors.
        known: The joints whose layers lead levels, too.
        make: Makes the stitching layer between two layouts.
    """

    def __init__(
        self,
        levels: Levels | None,
        views: Mapping[str, Anchor],
        known: Container[Joint],
        make: Callable[[Layout, Layout], StitchLayer],
    ):
        super().__init__()
        numbers = {label: str(number) for number, label in enumerate(views)}
        self.joined: dict[Joint, StitchLayer] = {}
        for joint in levels.without(known) if levels else ():
            layer, block = make(*layouts_at(joint, views[joint.front], views[joint.end])), joint.end_block - 1
            if numbers[joint.front] not in self:
                self[numbers[joint.front]] = nn.ModuleDict()
            self[numbers[joint.front]].add_module(str(block), layer)
            self.joined[joint] = layer

    def of(self, anchor: str, block: int) -> StitchLayer | None:
        """That of an anchor, by its label, for the level after a block of the last anchor; None if there is none."""
        layers = {(joint.front, joint.end_block - 1): layer for joint, layer in self.joined.items()}
        return layers.get((anchor, block))

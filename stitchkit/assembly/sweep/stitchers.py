"""Stitchers: the parts that bridge a gap in a sweep, from the shapes on its two sides.

Source: the sweeps of "Bridging Large Gaps in Neural Network Representations with Model Stitching".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TypeAlias

from stitchkit.assembly.parts.spec import PartSpec
from stitchkit.networks.layout import NAMES, Layout

FINETUNE = "finetune"
"""The stitcher without an adapter, which trains all remaining pieces."""


class DoesNotApply(Exception):
    """A stitcher cannot bridge a gap; the message is the reason, for the plan."""


@dataclass(frozen=True)
class _UnitSpec:
    """The input and output of one unit of an adapter; sides are those of the map before and after it."""

    layout: Layout
    in_channels: int
    out_channels: int
    in_side: int
    out_side: int


_Build: TypeAlias = Callable[[_UnitSpec], PartSpec]


@dataclass(frozen=True)
class Stitcher:
    """One way to bridge a gap.

    Args:
        unit: The kind of the units of its adapter: `linear`, `linear_relu`, `conv3x3`, `bottleneck` or `block`.
        resize: `never` (later pieces run at the source's size), `before` or `after` a unit, or by its `stride`.
    """

    unit: str
    resize: str

    @property
    def keeps_size(self) -> bool:
        """Whether the destination's pieces run at the source's size."""
        return self.resize == "never"

    def parts(self, source: Layout, destination: Layout, num_downsamples: int) -> list[PartSpec]:
        """The adapter between two pieces: a chain of trainable parts.

        Args:
            source: Full layout of the output of the last piece before the gap.
            destination: Full layout of the input of the first piece after the gap.
            num_downsamples: Number of times that the gap halves the map, and of units in the chain, at least one.

        Raises:
            DoesNotApply: If this stitcher has no unit for such shapes.
        """
        image_like = source.is_map or destination.is_map
        build = _unit(self.unit, image_like=image_like)
        if self.resize == "stride" and not image_like:
            raise DoesNotApply("a stride needs an image-like side; both sides are sequences")
        both_bert = source.name == destination.name == "bert"
        # A class token survives only between two networks that have one. Otherwise the published sweeps make it part of
        # every position, as the conversion to `token` does.
        start = source.converted_to(NAMES["img" if image_like else "bert" if both_bert else "token"])
        channels = _halvings(start.width, destination.width, num_downsamples)
        first, last = start.grid[0], (start if self.keeps_size else destination).grid[0]
        sides = _halvings(first, last, num_downsamples, grows=False)
        steps = zip(pairwise(channels), pairwise(sides), strict=True)
        return [self._part(build, _UnitSpec(start, *channel, *side)) for channel, side in steps]

    def _part(self, build: _Build, step: _UnitSpec) -> PartSpec:
        """One unit with its declared input shape, to which the assembly resizes its input."""
        unit = build(step)
        # Rounded up, because a strided unit keeps the last row of an odd side, as the networks' own blocks do.
        stride = {"stride": math.ceil(step.in_side / step.out_side)} if self.resize == "stride" else {}
        side = step.out_side if self.resize == "before" else step.in_side
        # The assembly resizes to the declared shape: `before` and `after` mean nothing else.
        positions = (side, side) if step.layout.is_map else (side**2,)
        taken = replace(step.layout, channels=step.in_channels, positions=positions)
        return replace(unit, arguments={**unit.arguments, **stride, "in_format": taken.declare()})


def _halvings(start: int, end: int, count: int, *, grows: bool = True) -> list[int]:
    """From `start` to `end` in `max(count, 1)` steps of a factor of two, clamped at `end`; the last one reaches it."""
    if end >= start:
        values = [min(start * 2**step, end) if grows else end for step in range(max(count, 1))]
    else:
        values = [max(start // 2**step, end) for step in range(max(count, 1))]
    return [*values, end]


def _unit(name: str, *, image_like: bool) -> _Build:
    """The function that builds one unit of an adapter.

    Raises:
        DoesNotApply: If there is no such unit between sequences.
    """
    if name == "block":
        return _resnet("ResNetBasicBlock") if image_like else _vision_transformer
    if not image_like and name in ("conv3x3", "bottleneck"):
        what = {"conv3x3": "a 3x3 convolution", "bottleneck": "a ResNet bottleneck"}[name]
        raise DoesNotApply(f"{what} needs an image-like side; both sides are sequences")
    if name == "bottleneck":
        return _resnet("ResNetBottleneck")
    layer = {"num_conv": 1, "kernel_size": 3 if name == "conv3x3" else 1} if image_like else {"num_fc": 1}
    return _simple({**layer, "nonlinearity": name != "linear"})


def _simple(arguments: dict[str, object]) -> _Build:
    return lambda step: PartSpec("SimpleAdapter", {**_channels(step), **arguments})


def _resnet(kind: str) -> _Build:
    return lambda step: PartSpec(kind, _channels(step))


def _channels(step: _UnitSpec) -> dict[str, object]:
    return {"in_channels": step.in_channels, "out_channels": step.out_channels}


def _vision_transformer(step: _UnitSpec) -> PartSpec:
    if step.in_channels != step.out_channels:
        raise DoesNotApply(
            f"a ViT block cannot change the number of channels, {step.in_channels}, to {step.out_channels}"
        )
    # Heads of 64 channels, as in ViTs, or as near to that as the channels allow.
    heads = math.gcd(step.in_channels, max(1, step.in_channels // 64))
    return PartSpec("VisionTransformerBlock", {"embed_dim": step.in_channels, "num_heads": heads})


STITCHERS: dict[str, Stitcher] = {
    "linear_no_downsample": Stitcher("linear", "never"),
    "linear_relu_no_downsample": Stitcher("linear_relu", "never"),
    "bottleneck_no_downsample": Stitcher("bottleneck", "never"),
    "block_no_downsample": Stitcher("block", "never"),
    "linear_post_downsample": Stitcher("linear", "after"),
    "downsample_then_linear": Stitcher("linear", "before"),
    "downsample_then_linear_relu": Stitcher("linear_relu", "before"),
    "downsample_then_3x3conv": Stitcher("conv3x3", "before"),
    "downsample_then_bottleneck": Stitcher("bottleneck", "before"),
    "downsample_then_block": Stitcher("block", "before"),
    "conv3x3_with_downsample": Stitcher("conv3x3", "stride"),
    "bottleneck_with_downsample": Stitcher("bottleneck", "stride"),
    "block_with_downsample": Stitcher("block", "stride"),
}
"""All stitchers with an adapter, by their published names."""

DEFAULT_STITCHERS = (
    FINETUNE,
    "linear_no_downsample",
    "linear_relu_no_downsample",
    "bottleneck_no_downsample",
    "downsample_then_linear",
    "downsample_then_linear_relu",
    "downsample_then_3x3conv",
    "downsample_then_bottleneck",
    "conv3x3_with_downsample",
    "bottleneck_with_downsample",
)
"""The ten of the published sweeps."""

"""Stitchers: the parts that bridge a gap in a sweep, from the shapes on its two sides.

Source: the sweeps of "Bridging Large Gaps in Neural Network Representations with Model Stitching".
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise

from stitchkit.assembly.parts.spec import PartSpec
from stitchkit.networks.layout import NAMES, Layout

FINETUNE = "finetune"
"""The stitcher without an adapter, which trains all remaining slices."""


class DoesNotApply(Exception):
    """A stitcher cannot bridge a gap; the message is the reason, for the plan."""


@dataclass(frozen=True)
class Stitcher:
    """One way to bridge a gap."""

    unit: str  # the kind of the units of its adapter: `linear`, `linear_relu`, `conv3x3`, `bottleneck` or `block`
    resize: str  # `never` (later slices run at the source's size), `before` or `after` a unit, or by its `stride`

    def parts(self, source: Layout, destination: Layout, num_downsamples: int) -> list[PartSpec]:
        """The adapter between two slices: a chain of trainable parts, one for each down-sampling, but at least one.

        `source` is the full layout before the gap, `destination` that after it.
        """
        image_like = source.is_map or destination.is_map
        needs = _NEEDS_MAP.get(self.unit) or ("a stride" if self.resize == "stride" else None)
        if needs and not image_like:
            raise DoesNotApply(f"{needs} needs an image-like side; both sides are sequences")
        both_bert = source.name == destination.name == "bert"
        # A class token survives only between two networks that have one. Otherwise the published sweeps make it part of
        # every position, as the conversion to `token` does.
        start = source.converted_to(NAMES["img" if image_like else "bert" if both_bert else "token"])
        channels = _halvings(start.width, destination.width, num_downsamples)
        first, last = start.grid[0], (start if self.resize == "never" else destination).grid[0]
        sides = _halvings(max(first, last), last, num_downsamples)
        steps = zip(pairwise(channels), pairwise(sides), strict=True)
        return [self._part(start, *channel, *side) for channel, side in steps]

    def _part(self, layout: Layout, in_channels: int, out_channels: int, in_side: int, out_side: int) -> PartSpec:
        """One unit that declares its input shape; the assembly resizes its input to that."""
        unit = _unit(self.unit, in_channels, out_channels, is_map=layout.is_map)
        # Rounded up, because a strided unit keeps the last row of an odd side, as the networks' own blocks do.
        stride = {"stride": math.ceil(in_side / out_side)} if self.resize == "stride" else {}
        side = out_side if self.resize == "before" else in_side
        # The assembly resizes to the declared shape: `before` and `after` mean nothing else.
        positions = (side, side) if layout.is_map else (side**2,)
        taken = replace(layout, channels=in_channels, positions=positions)
        return replace(unit, arguments={**unit.arguments, **stride, "in_format": taken.declare()})


def _halvings(start: int, end: int, count: int) -> list[int]:
    """From `start` to `end` in `max(count, 1)` steps of a factor of two, clamped at `end`; the last one reaches it."""
    steps = range(max(count, 1))
    if start > end:
        return [*(max(start // 2**step, end) for step in steps), end]
    return [*(min(start * 2**step, end) for step in steps), end]


def _unit(name: str, in_channels: int, out_channels: int, *, is_map: bool) -> PartSpec:
    """One unit of an adapter, between maps or between sequences."""
    if name == "block" and not is_map:
        if in_channels != out_channels:
            raise DoesNotApply(f"a ViT block cannot change the number of channels, {in_channels}, to {out_channels}")
        # Heads of 64 channels, as in ViTs, or as near to that as the channels allow.
        heads = math.gcd(in_channels, max(1, in_channels // 64))
        return PartSpec("VisionTransformerBlock", {"embed_dim": in_channels, "num_heads": heads})
    channels = {"in_channels": in_channels, "out_channels": out_channels}
    if name in _RESNET:
        return PartSpec(_RESNET[name], channels)
    layer = {"num_conv": 1, "kernel_size": 3 if name == "conv3x3" else 1} if is_map else {"num_fc": 1}
    return PartSpec("SimpleAdapter", {**channels, **layer, "nonlinearity": name != "linear"})


_RESNET = {"bottleneck": "ResNetBottleneck", "block": "ResNetBasicBlock"}
_NEEDS_MAP = {"conv3x3": "a 3x3 convolution", "bottleneck": "a ResNet bottleneck"}

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

DEFAULT_STITCHERS = tuple(
    name for name in (FINETUNE, *STITCHERS) if "block" not in name and name != "linear_post_downsample"
)
"""The ten of the published sweeps."""

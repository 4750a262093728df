"""Heads that predict at each position of a map: logits of classes, or a depth."""

from __future__ import annotations

import torch
from torch import nn

from stitchkit.assembly.parts.part import Part
from stitchkit.model.heads.head import MIN_DEPTH
from stitchkit.networks.layout import Layout
from stitchkit.settings.fields import Classes, Width


class SegmentationHead(Part):
    """A linear classifier of each position, which is a 1x1 convolution.

    Args:
        num_classes: Number of logits at a position.
        in_channels: Channels of the input map.
    """

    inferred = ("num_classes", "in_channels")
    in_format = Layout("NCHW")
    out_format = Layout("NCHW")

    def __init__(self, *, num_classes: Classes, in_channels: Width):
        super().__init__()
        self.in_format = Layout("NCHW", in_channels)
        self.conv = nn.Conv2d(in_channels, num_classes, kernel_size=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, in_channels, H, W]` to logits `[B, num_classes, H, W]`."""
        x = self.conv(x)
        return x


class DepthHead(Part):
    """A depth at each position: a 1x1 convolution, a ReLU, and the smallest depth.

    Args:
        in_channels: Channels of the input map.

    Source: as in `stitchkit.model.heads.head`, from which the smallest depth and the first bias are.
    """

    inferred = ("in_channels",)
    in_format = Layout("NCHW")
    out_format = Layout("NCHW")

    def __init__(self, *, in_channels: Width):
        super().__init__()
        self.in_format = Layout("NCHW", in_channels)
        self.conv = nn.Conv2d(in_channels, 1, kernel_size=1)
        assert self.conv.bias is not None
        nn.init.ones_(self.conv.bias)  # a ReLU that begins with zeros everywhere never learns

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, in_channels, H, W]` to metres `[B, 1, H, W]`."""
        depth: torch.Tensor = self.conv(x).relu() + MIN_DEPTH
        return depth

"""Heads for dense prediction: linear, SETR, and all by name."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from timm.layers import LayerNorm2d
from torch import nn
from torch.nn import functional as F

from stitchkit.model.heads.dpt import DptHead
from stitchkit.model.heads.head import DenseHead
from stitchkit.model.levels import Level, LevelInfo


class LinearHead(DenseHead):
    """Batch norm and a 1x1 convolution of all levels, concatenated at the size of the first.

    With one level it is DINOv2's linear head, with four of a plain transformer its multi-layer one.

    Source: DINOv2, section 7.4.
    """

    def __init__(self, levels: Sequence[LevelInfo], num_outputs: int, *, min_depth: float | None = None):
        super().__init__(levels, num_outputs, min_depth=min_depth)
        channels = sum(level.channels for level in levels)
        self.norm = nn.BatchNorm2d(channels)
        self.output = self.last_layer(channels)

    def predict(self, levels: Sequence[Level]) -> torch.Tensor:
        """Outputs `[B, num_outputs, H, W]` at the size of the first level."""
        maps = [level.map for level in levels]
        if not self.is_plain:
            maps = [F.interpolate(x, size=maps[0].shape[-2:], mode="bilinear") for x in maps]
        y: torch.Tensor = self.output(self.norm(torch.cat(maps, 1)))
        return y


class SetrHead(DenseHead):
    """SETR's naive upsampling of the last level, and auxiliary heads for the others.

    Each of its 1x1 convolutions, one in the main head and two in the others, is followed by an upsampling by 4, or by
    less if the map would become larger than the image.

    Args:
        channels: Channels of the convolutions.

    Source: Stitched ViTs, ADE20K; SETR, section 3.3. A class map is upsampled at less cost, but the published FLOPs
        are those of upsampled features. The limit to the upsampling, for hierarchical networks, is ours.
    """

    def __init__(
        self, levels: Sequence[LevelInfo], num_outputs: int, *, min_depth: float | None = None, channels: int = 256
    ):
        super().__init__(levels, num_outputs, min_depth=min_depth)
        *others, last = levels
        self.main = self._layers(last, channels, convolutions=1)
        self.others = nn.ModuleList(self._layers(level, channels, convolutions=2) for level in others)

    @property
    def needed(self) -> tuple[int, ...]:
        """The number of the last level."""
        return (len(self.levels) - 1,)

    def folded(self) -> SetrHead:
        """This as it is exported, without auxiliary heads."""
        twin = copy.copy(self)
        twin._modules = {"main": self.main}
        return twin

    def _layers(self, level: LevelInfo, channels: int, *, convolutions: int) -> nn.Sequential:
        width, reduction = level.channels, float(level.reduction)
        layers: list[nn.Module] = [LayerNorm2d(width, eps=1e-6)]
        for _ in range(convolutions):
            scale = min(4.0, reduction)
            layers += [nn.Conv2d(width, channels, kernel_size=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
            if scale > 1:
                layers.append(nn.Upsample(scale_factor=scale, mode="bilinear"))
            width, reduction = channels, reduction / scale
        return nn.Sequential(*layers, self.last_layer(width))

    def predict(self, levels: Sequence[Level]) -> torch.Tensor:
        """Outputs `[B, num_outputs, 4H, 4W]` of the last level."""
        y: torch.Tensor = self.main(levels[-1].map)
        return y

    def auxiliary(self, levels: Sequence[Level]) -> list[torch.Tensor]:
        """Outputs `[B, num_outputs, 16H, 16W]` of each other level."""
        return [self.finished(head(level.map)) for head, level in zip(self.others, levels[:-1], strict=True)]


HEADS: dict[str, type[DenseHead]] = {"linear": LinearHead, "setr": SetrHead, "dpt": DptHead}
"""The heads by name; all take levels, a number of outputs and `min_depth`."""

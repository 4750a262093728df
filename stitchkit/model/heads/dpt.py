"""DPT: levels become a pyramid, which is fused from the last one to the first, up to the size of the image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from stitchkit.errors import InputError
from stitchkit.model.heads.head import DenseHead
from stitchkit.model.levels import Level, LevelInfo


class DptHead(DenseHead):
    """The head of Dense Prediction Transformers.

    Four levels of the same reduction are resized to 4, 2, 1 and 1/2 times their size; others keep theirs. The outputs
    have four times the size of the first map after that, which is the image's for patches of 16 pixels.

    Args:
        widths: Channels of each level after its reduction.
        channels: Channels of the fusion; a multiple of 8.

    Source: Stitched ViTs, NYUv2; Vision Transformers for Dense Prediction, section 3. Both double a map and then
        resize the next one to it; ours is resized to the next one, which differs only where a size is odd.
    """

    def __init__(
        self, levels: Sequence[LevelInfo], num_outputs: int, *, min_depth: float | None = None,
        widths: Sequence[int] = (96, 192, 384, 768), channels: int = 256,
    ):  # fmt: skip
        super().__init__(levels, num_outputs, min_depth=min_depth)
        if len(levels) != 4:
            raise InputError(f"the dpt head needs 4 levels, not {len(levels)}; give 4, or choose another head")
        resizes: list[nn.Module] = [nn.Identity() for _ in levels]
        if self.is_plain:
            resizes[0] = nn.ConvTranspose2d(widths[0], widths[0], kernel_size=4, stride=4)
            resizes[1] = nn.ConvTranspose2d(widths[1], widths[1], kernel_size=2, stride=2)
            resizes[3] = nn.Conv2d(widths[3], widths[3], kernel_size=3, stride=2, padding=1)
        rows = zip(levels, widths, resizes, strict=True)
        self.reassemble = nn.ModuleList(_Reassemble(level, width, channels, resize) for level, width, resize in rows)
        self.fusions = nn.ModuleList(_Fusion(channels, is_last=is_last) for is_last in (False, False, False, True))
        self.project = nn.Sequential(_convolution(channels, channels), nn.ReLU())
        self.output = nn.Sequential(
            _convolution(channels, channels // 2),
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
            _convolution(channels // 2, channels // 8),
            nn.ReLU(),
            self.last_layer(channels // 8),
        )

    def predict(self, levels: Sequence[Level]) -> torch.Tensor:
        """Outputs `[B, num_outputs, 4H, 4W]`, where `[H, W]` is the size of the first level's resized map."""
        maps = [reassemble(level) for reassemble, level in zip(self.reassemble, levels, strict=True)]
        height, width = maps[0].shape[-2:]
        sizes = [(2 * height, 2 * width), *(x.shape[-2:] for x in maps[:-1])]
        x = None
        for fusion, own, size in reversed([*zip(self.fusions, maps, sizes, strict=True)]):
            x = fusion(x, own, size)
        y: torch.Tensor = self.output(self.project(x))
        return y


class _Reassemble(nn.Module):
    """A level to a map of the fusion's channels; its class token, if it has one, is read at every position."""

    def __init__(self, level: LevelInfo, width: int, channels: int, resize: nn.Module):
        super().__init__()
        self.readout: nn.Sequential | None = None
        if level.num_prefix_tokens:
            self.readout = nn.Sequential(nn.Linear(2 * level.channels, level.channels), nn.GELU())
        self.layers = nn.Sequential(
            nn.Conv2d(level.channels, width, kernel_size=1), resize, _convolution(width, channels, bias=False)
        )

    def forward(self, level: Level) -> torch.Tensor:
        """A level to `[B, channels, h, w]`."""
        x = level.map
        if self.readout is not None:
            assert level.prefix is not None, "its LevelInfo counts prefix tokens"
            x = x.permute(0, 2, 3, 1)  # torch's older ONNX exporter garbles `movedim(1, -1)`
            token = level.prefix[:, 0, None, None].expand_as(x)
            x = self.readout(torch.cat([x, token], -1)).permute(0, 3, 1, 2)
        y: torch.Tensor = self.layers(x)
        return y


class _Fusion(nn.Module):
    """Adds the map of a level to what the later ones gave, and resizes the sum."""

    def __init__(self, channels: int, *, is_last: bool):
        super().__init__()
        # The last level has nothing to be added to.
        self.unit1 = None if is_last else _ResidualUnit(channels)
        self.unit2 = _ResidualUnit(channels)
        self.project = nn.Conv2d(channels, channels, kernel_size=1)

    def forward(self, x: torch.Tensor | None, own: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
        """Maps `[B, channels, H, W]` to one `[B, channels, *size]`."""
        if self.unit1 is not None:
            assert x is not None
            own = x + self.unit1(own)
        y: torch.Tensor = F.interpolate(self.unit2(own), size=size, mode="bilinear", align_corners=True)
        y = self.project(y)
        return y


class _ResidualUnit(nn.Module):
    """Two convolutions, each after its activation, whose result is added to the input."""

    def __init__(self, channels: int):
        super().__init__()
        first, second = (_convolution(channels, channels, bias=False) for _ in range(2))
        self.layers = nn.Sequential(nn.ReLU(), first, nn.ReLU(), second)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, channels, H, W]` to the same shape."""
        y: torch.Tensor = self.layers(x)
        return x + y


def _convolution(in_channels: int, out_channels: int, *, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=bias)

"""Blocks of known networks as adapters: torchvision's and timm's own, with the published arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from pydantic import StrictBool, StrictFloat, StrictInt
from timm.layers import LayerNorm2d
from timm.models.vision_transformer import Block
from torch import nn
from torchvision.models import resnet, swin_transformer

from stitchkit.assembly.parts.adapters import start_as_identity
from stitchkit.assembly.parts.part import Part
from stitchkit.errors import InputError
from stitchkit.networks.layout import Layout

NORMS: dict[str, Callable[[int], nn.Module]] = {
    "bn": nn.BatchNorm2d,
    "gn": lambda channels: nn.GroupNorm(1, channels),
    "ln": LayerNorm2d,
    "in": lambda channels: nn.InstanceNorm2d(channels, affine=True),
}
"""Norms of ResNet blocks by `norm_type`."""


class _Block(Part):
    block: nn.Module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps `[B, C, H, W]` of a ResNet, `[B, H, W, C]` of Swin, or sequences `[B, L, C]` of ViT, to the same."""
        x = self.block(x)
        return x


class _ResNetBlock(_Block):
    in_format = Layout("NCHW")
    expansion: int

    def __init__(
        self,
        *,
        in_channels: StrictInt,
        out_channels: StrictInt,
        stride: StrictInt = 1,
        groups: StrictInt = 1,
        base_width: StrictInt = 64,
        dilation: StrictInt = 1,
        norm_type: Literal["bn", "gn", "ln", "in"] = "bn",
        init_identity: StrictBool = True,
    ):
        super().__init__()
        if out_channels % self.expansion:
            raise InputError(f"out_channels is {out_channels}; it must be a multiple of {self.expansion}")
        norm = NORMS[norm_type]
        self.in_format = Layout("NCHW", in_channels)
        # torchvision creates the shortcut in its ResNet, not in the block, so a single block needs its own.
        shortcut: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            shortcut = nn.Sequential(resnet.conv1x1(in_channels, out_channels, stride), norm(out_channels))
        kind = resnet.BasicBlock if self.expansion == 1 else resnet.Bottleneck
        planes = out_channels // self.expansion
        self.block = block = kind(in_channels, planes, stride, shortcut, groups, base_width, dilation, norm)
        if init_identity:
            # With the last norm at 0, only the shortcut remains ("Accurate, Large Minibatch SGD", Goyal et al., 2017).
            last = block.bn2 if isinstance(block, resnet.BasicBlock) else block.bn3
            nn.init.zeros_(last.weight)
            if shortcut is not None:
                start_as_identity(shortcut)


class ResNetBasicBlock(_ResNetBlock):
    """Two 3x3 convolutions and a shortcut.

    Args:
        in_channels: Input channels.
        out_channels: Output channels.
        stride: Stride of the first convolution and the shortcut.
        groups: Always 1: torchvision's block supports nothing else.
        base_width: Always 64, likewise.
        dilation: Always 1, likewise.
        norm_type: `bn`, `gn` (one group), `ln` (over the channels of each position) or `in`.
        init_identity: Start as the identity on the channels that both sides have: the last norm at 0, the shortcut
            the identity. In evaluation mode this is exact for non-negative inputs.
    """

    expansion = 1


class ResNetBottleneck(_ResNetBlock):
    """A 1x1, a 3x3 and a 1x1 convolution and a shortcut; a quarter of the channels between.

    Args:
        in_channels: Input channels.
        out_channels: Output channels, a multiple of 4.
        stride: Stride of the 3x3 convolution and the shortcut.
        groups: Groups of the 3x3 convolution.
        base_width: Width of a group, in 64ths.
        dilation: Dilation of the 3x3 convolution.
        norm_type: As in `ResNetBasicBlock`.
        init_identity: As in `ResNetBasicBlock`.
    """

    expansion = 4


class VisionTransformerBlock(_Block):
    """An encoder block of ViT, by default of ViT-S.

    Args:
        num_heads: Number of attention heads.
        embed_dim: Channels.
        mlp_ratio: Width of the MLP in units of `embed_dim`.
    """

    inferred = ("embed_dim",)
    takes = ("bert", "token")

    def __init__(self, *, num_heads: StrictInt = 6, embed_dim: StrictInt = 384, mlp_ratio: StrictFloat = 4):
        super().__init__()
        _check_heads(num_heads, embed_dim)
        self.block = Block(embed_dim, num_heads, mlp_ratio=mlp_ratio, qkv_bias=True)


class SwinTransformerBlock(_Block):
    """A block of Swin; maps that are not multiples of the window are padded for attention.

    Args:
        num_heads: Number of attention heads.
        embed_dim: Channels.
        do_shift: Shift the windows by half their size. (The published code inverts the meaning.)
        window_size: Height and width of a window.
    """

    inferred = ("embed_dim",)
    in_format = Layout("NHWC")

    def __init__(
        self, *, num_heads: StrictInt, embed_dim: StrictInt, do_shift: StrictBool = False, window_size: StrictInt = 7
    ):
        super().__init__()
        _check_heads(num_heads, embed_dim)
        self.in_format = Layout("NHWC", embed_dim)
        shift = window_size // 2 if do_shift else 0  # half a window, as Swin alternates
        self.block = swin_transformer.SwinTransformerBlock(
            embed_dim, num_heads, window_size=[window_size] * 2, shift_size=[shift] * 2
        )


def _check_heads(num_heads: int, embed_dim: int) -> None:
    if num_heads < 1 or embed_dim % num_heads:
        raise InputError(f"num_heads is {num_heads}; it must divide embed_dim, which is {embed_dim}")

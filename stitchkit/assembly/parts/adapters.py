"""Adapters: convolutions or linear layers between two slices, or blocks of torchvision's and timm's networks.

Names and defaults of arguments are the published ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from pydantic import StrictBool
from timm.layers import LayerNorm2d
from timm.models.vision_transformer import Block
from torch import nn
from torchvision.models import resnet, swin_transformer

from stitchkit.assembly.parts.part import Format, Part
from stitchkit.errors import InputError
from stitchkit.networks.layout import Layout
from stitchkit.settings.fields import Copies, Factor, Share, Side, Times, Width

_MOST_LAYERS = 1000


class SimpleAdapter(Part):
    """A norm, then `n` times a convolution or linear layer, a norm and LeakyReLU.

    A linear adapter without `fc_format` takes any format with the channels last.

    Args:
        in_channels: Input channels.
        out_channels: Output channels.
        hid_channels: Channels between its layers; by default `out_channels`.
        num_fc: Number of linear layers.
        num_conv: Number of convolutions; set either this or `num_fc`.
        kernel_size: Times size of the convolutions.
        stride: Stride of the first convolution.
        padding: Padding of the convolutions; by default half the kernel, which keeps the size at stride 1. The
            published code also pads 1x1 kernels, which grows the map.
        leading_norm: Begin with a norm.
        nonlinearity: LeakyReLU of slope 0.1 after each layer.
        init_identity: Start as the identity on the channels that both sides have. In evaluation mode this is exact
            for a convolutional adapter and non-negative inputs; a linear one still normalises.
        fc_format: Input format of a linear adapter, e.g. `token`.
    """

    in_format: Layout | None = Layout("NCHW")
    published: ClassVar[Mapping[str, str]] = {"adapter.": "layers."}

    def __init__(
        self, *, in_channels: Width, out_channels: Width, hid_channels: Width | None = None, num_fc: Copies = 0,
        num_conv: Copies = 0, kernel_size: Times = 3, stride: Times = 1, padding: Copies | None = None,
        leading_norm: StrictBool = True, nonlinearity: StrictBool = True, init_identity: StrictBool = False,
        fc_format: Format | None = None,
    ):  # fmt: skip
        super().__init__()
        if (num_fc > 0) == (num_conv > 0):
            raise InputError(f"num_fc is {num_fc} and num_conv {num_conv}; exactly one of them must be at least 1")
        if max(num_fc, num_conv) > _MOST_LAYERS:
            raise InputError(f"num_fc is {num_fc} and num_conv {num_conv}; at most {_MOST_LAYERS} layers are built")
        if num_fc and stride != 1:
            raise InputError(f"stride is {stride}, but linear layers have none; use num_conv instead of num_fc")
        padding = kernel_size // 2 if padding is None else padding
        # The published code ends with hid_channels, so that such an adapter never reaches out_channels.
        widths = [in_channels, *[hid_channels or out_channels] * (num_fc + num_conv - 1), out_channels]
        # A layer norm acts on the last axis, which is the channels wherever a linear layer fits.
        norm: Callable[[int], nn.Module] = nn.BatchNorm2d if num_conv else nn.LayerNorm
        layers = [norm(in_channels)] if leading_norm else []
        for number, (before, after) in enumerate(pairwise(widths)):
            if num_conv:
                step = stride if number == 0 else 1  # the stride applies once per adapter
                layers.append(nn.Conv2d(before, after, kernel_size, stride=step, padding=padding))
            else:
                layers.append(nn.Linear(before, after))
            layers.append(norm(after))
            if nonlinearity:
                layers.append(nn.LeakyReLU(0.1, inplace=True))
        self.layers = nn.Sequential(*layers)
        if num_fc and fc_format is None:
            self.in_format, self.takes = None, ("bhwc", "token", "bert", "vector")
        else:
            layout = Layout("NCHW") if num_conv else Layout.parse(fc_format)
            self.in_format = replace(layout, channels=in_channels)
        if init_identity:
            start_as_identity(self.layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, in_channels, H, W]`, or channels last, to the same with `out_channels`."""
        x = self.layers(x)
        return x


@torch.no_grad()
def start_as_identity(module: nn.Module) -> None:
    """Make convolutions and linear layers the identity on the channels that both sides have; batch norms scale by 1.

    Convolutions are ungrouped, and their kernels odd.
    """
    for layer in module.modules():
        # Both initialisers also fill rectangles: channels that only one side has start at 0.
        if isinstance(layer, nn.Conv2d):
            nn.init.dirac_(layer.weight)
        elif isinstance(layer, nn.Linear):
            nn.init.eye_(layer.weight)
        elif isinstance(layer, nn.BatchNorm2d) and layer.running_var is not None:
            layer.running_var.fill_(1 - layer.eps)  # the norm adds eps again
        if isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None:
            nn.init.zeros_(layer.bias)


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "bn": nn.BatchNorm2d,
    "gn": lambda channels: nn.GroupNorm(1, channels),
    "ln": LayerNorm2d,
    "in": lambda channels: nn.InstanceNorm2d(channels, affine=True),
}
"""Norms of ResNet blocks by `norm_type`."""


class _Block(Part):
    published: ClassVar[Mapping[str, str]] = {"": "block."}
    block: nn.Module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps `[B, C, H, W]` of a ResNet, `[B, H, W, C]` of Swin, or sequences `[B, L, C]` of ViT, to the same."""
        x = self.block(x)
        return x


class _ResNetBlock(_Block):
    """A block of a ResNet.

    Args:
        in_channels: Input channels.
        out_channels: Output channels; of a bottleneck, a multiple of 4.
        stride: Stride of the shortcut and of one 3x3 convolution.
        groups: Groups of the 3x3 convolution of a bottleneck; torchvision's basic block supports only 1.
        base_width: Width of a group of a bottleneck, in 64ths; a basic block supports only 64.
        dilation: Dilation of the 3x3 convolution of a bottleneck; a basic block supports only 1.
        norm_type: `bn`, `gn` (one group), `ln` (over the channels of each position) or `in`.
        init_identity: Start as the identity on the channels that both sides have: the last norm at 0, the shortcut
            the identity. In evaluation mode this is exact for non-negative inputs.
    """

    in_format = Layout("NCHW")
    expansion: int

    def __init__(
        self, *, in_channels: Width, out_channels: Width, stride: Times = 1, groups: Width = 1, base_width: Width = 64,
        dilation: Times = 1, norm_type: Literal["bn", "gn", "ln", "in"] = "bn", init_identity: StrictBool = True,
    ):  # fmt: skip
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
    """Two 3x3 convolutions and a shortcut."""

    expansion = 1


class ResNetBottleneck(_ResNetBlock):
    """A 1x1, a 3x3 and a 1x1 convolution and a shortcut; a quarter of the channels between."""

    expansion = 4


class VisionTransformerBlock(_Block):
    """An encoder block of ViT, by default of ViT-S.

    Args:
        num_heads: Number of attention heads.
        embed_dim: Channels.
        mlp_ratio: Width of the MLP in units of `embed_dim`.
        dropout: Share of values that are dropped after attention and in the MLP.
        attention_dropout: Share of attention weights that are dropped.
    """

    inferred = ("embed_dim",)
    takes = ("bert", "token")
    published: ClassVar[Mapping[str, str]] = {  # torchvision's names
        "ln_": "block.norm", "mlp.0.": "block.mlp.fc1.", "mlp.3.": "block.mlp.fc2.",
        "self_attention.in_proj_": "block.attn.qkv.", "self_attention.out_proj.": "block.attn.proj.",
    }  # fmt: skip

    def __init__(
        self, *, num_heads: Width = 6, embed_dim: Width = 384, mlp_ratio: Factor = 4, dropout: Share = 0.0,
        attention_dropout: Share = 0.0,
    ):  # fmt: skip
        super().__init__()
        _check_heads(num_heads, embed_dim)
        self.block = Block(
            embed_dim, num_heads, mlp_ratio=mlp_ratio, qkv_bias=True, proj_drop=dropout, attn_drop=attention_dropout
        )


class SwinTransformerBlock(_Block):
    """A block of Swin; maps that are not multiples of the window are padded for attention.

    Args:
        num_heads: Number of attention heads.
        embed_dim: Channels.
        do_shift: Shift the windows by half their size. (The published code inverts the meaning.)
        window_size: Height and width of a window, or one number for both.
        mlp_ratio: Width of the MLP in units of `embed_dim`.
        dropout: Share of values that are dropped after attention and in the MLP.
        attention_dropout: Share of attention weights that are dropped.
        drop_path_rate: Share of images that skip attention or the MLP.
    """

    inferred = ("embed_dim",)
    in_format = Layout("NHWC")

    def __init__(
        self, *, num_heads: Width, embed_dim: Width, do_shift: StrictBool = False,
        window_size: Side | tuple[Side, Side] = 7, mlp_ratio: Factor = 4, dropout: Share = 0.0,
        attention_dropout: Share = 0.0, drop_path_rate: Share = 0.0,
    ):  # fmt: skip
        super().__init__()
        _check_heads(num_heads, embed_dim)
        self.in_format = Layout("NHWC", embed_dim)
        sides = [window_size] * 2 if isinstance(window_size, int) else [*window_size]
        shifts = [side // 2 if do_shift else 0 for side in sides]  # half a window, as Swin alternates
        self.block = swin_transformer.SwinTransformerBlock(
            embed_dim, num_heads, window_size=sides, shift_size=shifts, mlp_ratio=mlp_ratio, dropout=dropout,
            attention_dropout=attention_dropout, stochastic_depth_prob=drop_path_rate,
        )  # fmt: skip


def _check_heads(num_heads: int, embed_dim: int) -> None:
    if num_heads < 1 or embed_dim % num_heads:
        raise InputError(f"num_heads is {num_heads}; it must divide embed_dim, which is {embed_dim}")

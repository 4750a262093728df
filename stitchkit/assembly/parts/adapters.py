"""The simple adapter: convolutions or linear layers between two slices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import torch
from pydantic import StrictBool, StrictInt
from torch import nn

from stitchkit.assembly.parts.part import Format, Part
from stitchkit.errors import InputError
from stitchkit.networks.layout import Layout


class SimpleAdapter(Part):
    """A norm, then `n` times a convolution or linear layer, a norm and LeakyReLU.

    A linear adapter without `fc_format` takes any format with the channels last.

    Args:
        in_channels: Input channels.
        out_channels: Output channels.
        hid_channels: Channels between its layers; by default `out_channels`.
        num_fc: Number of linear layers.
        num_conv: Number of convolutions; set either this or `num_fc`.
        kernel_size: Kernel size of the convolutions.
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

    def __init__(
        self,
        *,
        in_channels: StrictInt,
        out_channels: StrictInt,
        hid_channels: StrictInt | None = None,
        num_fc: StrictInt = 0,
        num_conv: StrictInt = 0,
        kernel_size: StrictInt = 3,
        stride: StrictInt = 1,
        padding: StrictInt | None = None,
        leading_norm: StrictBool = True,
        nonlinearity: StrictBool = True,
        init_identity: StrictBool = False,
        fc_format: Format | None = None,
    ):
        super().__init__()
        if min(num_fc, num_conv) < 0 or (num_fc > 0) == (num_conv > 0):
            raise InputError(f"num_fc is {num_fc} and num_conv {num_conv}; exactly one of them must be at least 1")
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

    Args:
        module: The module that contains them; its convolutions are ungrouped and their kernels odd.
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

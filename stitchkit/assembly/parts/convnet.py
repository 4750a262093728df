"""The small convolutional network of few-shot learning, by the published jobs' name and arguments: `convnet`."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial

from timm.layers import to_2tuple
from torch import nn

from stitchkit.errors import InputError, unknown

Size = int | Sequence[int]
"""A side, or height and width."""

_NORMS: dict[str, Callable[[int], nn.Module]] = {
    **dict.fromkeys(("bn", "batch", "batchnorm"), nn.BatchNorm2d),
    **dict.fromkeys(("in", "instance", "instancenorm"), partial(nn.InstanceNorm2d, affine=True)),
    **dict.fromkeys(("gn", "group", "groupnorm"), partial(nn.GroupNorm, 1)),
}


class ConvNet(nn.Module):
    """Blocks of convolutions, each with a norm and ReLU, and a max-pooling; it has no classifier.

    Each argument from `num_conv_per_block` on, and `num_filters`, may be a list with a value for each block. Two
    numbers for a kernel, stride, padding or pooling are a height and a width.

    Args:
        input_shape: Shape of an image, `[C, H, W]`, whose channels replace `x_dim`.
        x_dim: Channels of an image.
        num_filters: Output channels of a block.
        norm_type: `in`, `bn` or `gn` (one group), or None.
        pool_size: 0 or None for no pooling.

    Source: `convnet` of the published jobs, whose names of weights these are.
    """

    def __init__(
        self,
        *,
        input_shape: Sequence[int] | None = None,
        x_dim: int = 3,
        num_filters: int | Sequence[int] = 64,
        num_blocks: int = 4,
        num_conv_per_block: int | Sequence[int] = 1,
        kernel_size: Size | Sequence[Size] = (3, 3),
        stride: Size | Sequence[Size] = (1, 1),
        padding: Size | Sequence[Size] = 1,
        norm_type: str | Sequence[str | None] | None = "in",
        pool_size: Size | Sequence[Size | None] | None = 2,
    ):
        super().__init__()
        if num_blocks < 1:
            raise InputError(f"num_blocks is {num_blocks}; it must be at least 1")
        per_block = partial(_per_block, count=num_blocks)
        widths = per_block("num_filters", num_filters)
        settings = zip(
            [x_dim if input_shape is None else input_shape[0], *widths[:-1]],
            widths,
            per_block("num_conv_per_block", num_conv_per_block),
            per_block("kernel_size", kernel_size, is_size=True),
            per_block("stride", stride, is_size=True),
            per_block("padding", padding, is_size=True),
            per_block("norm_type", norm_type),
            per_block("pool_size", pool_size, is_size=True),
            strict=True,
        )
        blocks = OrderedDict[str, nn.Module]((f"block{n}", _block(*given)) for n, given in enumerate(settings, start=1))
        self.encoder = nn.Sequential(blocks) if num_blocks > 1 else blocks["block1"]
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight)

    def forward(self, x: object) -> object:
        """Images `[B, C, H, W]` to features `[B, num_filters, H / 2^num_blocks, W / 2^num_blocks]`."""
        return self.encoder(x)


def _per_block(name: str, value: object, *, count: int, is_size: bool = False) -> list[object]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        return [value] * count
    if is_size and len(value) == 2 and not isinstance(value[0], Sequence):
        return [value] * count
    if len(value) != count:
        raise InputError(f"{name} has {len(value)} values for {count} blocks; set one, or one for each block")
    return list(value)


def _block(
    channels: int, width: int, num_conv: int, kernel: Size, stride: Size, padding: Size, norm: str | None,
    pool: Size | None,
) -> nn.Sequential:  # fmt: skip
    if norm is not None and norm not in _NORMS:
        raise unknown("norm_type", norm, _NORMS)
    layers = nn.Sequential()
    for number in range(num_conv):
        before = width if number else channels
        layers.add_module(f"conv{number}", nn.Conv2d(before, width, *map(to_2tuple, (kernel, stride, padding))))
        if norm is not None:
            layers.add_module(f"norm{number}", _NORMS[norm](width))
        layers.add_module(f"relu{number}", nn.ReLU())
    if pool:
        layers.add_module("pool", nn.MaxPool2d(to_2tuple(pool)))
    return layers

"""What passes between fragments: maps, vectors, tokens, and how one stands for another."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from timm.layers.format import Format
from torch import nn

from stitchkit.networks.layout import convert


@dataclass(frozen=True)
class Form:
    """How a tensor holds its features.

    Args:
        layout: `NCHW`, `NHWC` or `NLC`; None for vectors `[B, D]`.
        num_prefix_tokens: Of `NLC`: how many tokens, such as the class token, stand before those of the positions.
    """

    layout: Format | None
    num_prefix_tokens: int = 0

    @property
    def is_vector(self) -> bool:
        """Whether there are no positions."""
        return self.layout is None

    @property
    def channel_dim(self) -> int:
        """Where the features stand."""
        return 1 if self.layout in (None, Format.NCHW) else -1

    @property
    def name(self) -> str:
        """The layout's name, or `vector`."""
        return "vector" if self.layout is None else self.layout.value

    def split(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Maps `[B, C, H, W]` or vectors `[B, D]`, and the prefix tokens `[B, C, P]` if there are any."""
        if self.layout is None or self.layout == Format.NCHW:
            return x, None
        if self.layout == Format.NHWC:
            return convert(x, Format.NHWC, Format.NCHW), None
        x = convert(x, Format.NLC, Format.NCL)
        prefix, positions = x[..., : self.num_prefix_tokens], x[..., self.num_prefix_tokens :]
        side = math.isqrt(positions.shape[-1])
        return positions.reshape(*positions.shape[:2], side, side), prefix if self.num_prefix_tokens else None

    def join(self, x: torch.Tensor, prefix: torch.Tensor | None) -> torch.Tensor:
        """The tensor that `split` splits so."""
        if self.layout is None or self.layout == Format.NCHW:
            return x
        if self.layout == Format.NHWC:
            return convert(x, Format.NCHW, Format.NHWC)
        x = x.flatten(2)
        return convert(x if prefix is None else torch.cat([prefix, x], -1), Format.NCL, Format.NLC)


def find_form(shape: tuple[int, ...], model: nn.Module, size: tuple[int, int]) -> Form | None:
    """The form of a tensor inside a model, by its shape; None if a joint can make none such.

    Args:
        shape: With the batch.
        model: The model.
        size: Height and width of its images; if they are not square, it does not tell how tokens are arranged.
    """
    if len(shape) == 2:
        return Form(None)
    # timm's `unroll` puts tokens into another order than that of their positions.
    if len(shape) == 3 and size[0] == size[1] and not hasattr(model, "unroll"):
        prefix = getattr(model, "num_prefix_tokens", shape[1] - math.isqrt(shape[1]) ** 2)
        if math.isqrt(shape[1] - prefix) ** 2 == shape[1] - prefix > 0:
            return Form(Format.NLC, prefix)
    if len(shape) == 4:
        # Maps have the proportions of the images, wherever their channels stand.
        leading, trailing = (_is_proportional(sides, size) for sides in (shape[1:3], shape[2:4]))
        last = (leading and not trailing) or getattr(model, "output_fmt", None) == Format.NHWC
        return Form(Format.NHWC if last and (leading or not trailing) else Format.NCHW)
    return None


def _is_proportional(sides: tuple[int, ...], size: tuple[int, int]) -> bool:
    """Whether height and width are those of images made smaller, but for rounding."""
    return abs(sides[0] - sides[1] * size[0] / size[1]) < 1

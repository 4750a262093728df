"""Layouts of activations: where the channels stand among the positions.

The names are timm's: `NCHW` of convolutional networks, `NHWC` of hierarchical and `NLC` of plain transformers.
"""

from __future__ import annotations

import torch
from timm.layers.format import Format, get_channel_dim

__all__ = ["Format", "convert", "rows"]


def convert(x: torch.Tensor, source: Format, target: Format) -> torch.Tensor:
    """Move the channels to where another layout has them; the positions keep their order.

    Args:
        x: Activations, e.g. `[B, C, H, W]`.
        source: Their layout.
        target: A layout with the same positions, e.g. `NHWC` for `[B, H, W, C]`.
    """
    return x.movedim(get_channel_dim(source), get_channel_dim(target))


def rows(x: torch.Tensor, layout: Format) -> torch.Tensor:
    """Activations as a matrix `[B x positions, C]`."""
    x = x.movedim(get_channel_dim(layout), -1)
    return x.reshape(-1, x.shape[-1])

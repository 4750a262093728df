"""The stitching layer: the only new weights of an SN-Net."""

from __future__ import annotations

import torch
from torch import nn


class StitchLayer(nn.Module):
    """A linear map with bias from the channels of a front anchor to those of an end anchor.

    Args:
        in_channels: Width of the front.
        out_channels: Width of the end.

    Source: SN-Net, section 3.2.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.transform = nn.Linear(in_channels, out_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens `[B, N, in_channels]` to `[B, N, out_channels]`."""
        return self.transform(x)  # type: ignore[no-any-return]

    @torch.no_grad()
    def set_map(self, matrix: torch.Tensor) -> None:
        """Take over a linear map.

        Args:
            matrix: `[in_channels + 1, out_channels]`; the last row is the bias.
        """
        self.transform.weight.copy_(matrix[:-1].T)
        self.transform.bias.copy_(matrix[-1])

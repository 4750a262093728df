"""The stitching layer: the only new weights of an SN-Net."""

from __future__ import annotations

import torch
from torch import nn

from stitchkit.networks.layout import Layout, convert


class StitchLayer(nn.Module):
    """A linear map with bias from the channels of a front anchor to those of an end anchor, at each position.

    Fronts with channels first get a 1x1 convolution, others a linear layer; both are the same map.

    Source: SN-Net, section 3.2.
    """

    def __init__(self, source: Layout, target: Layout):
        super().__init__()
        # Without sizes: an anchor may also run on larger images than those it was built for.
        self.source, self.target = source.bare, target.bare
        self.transform: nn.Conv2d | nn.Linear
        if source.kind == "NCHW":
            self.transform = nn.Conv2d(source.width, target.width, kernel_size=1)
        else:
            self.transform = nn.Linear(source.width, target.width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Activations of the front to those of the end, e.g. `[B, in_channels, H, W]` to `[B, H, W, out_channels]`."""
        return convert(self.transform(x), self.source, self.target)

    @torch.no_grad()
    def set_map(self, matrix: torch.Tensor) -> None:
        """Set the linear map `[in_channels + 1, out_channels]`; its last row is the bias."""
        self.transform.weight.copy_(matrix[:-1].T.reshape(self.transform.weight.shape))
        assert self.transform.bias is not None
        self.transform.bias.copy_(matrix[-1])

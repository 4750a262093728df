"""The networks of the study: ConvNeXts of several widths, and one whose widths are slices of the widest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from stitchkit.networks.create import create_model
from studies.evidence.size import Size

NAME = "convnext_atto"
"""The timm model whose arguments make all of them."""
CLASSES = 62


def arguments(size: Size, width: int) -> dict[str, Any]:
    """The arguments of timm's model that make it a ConvNeXt of this width."""
    dims = [width // 2, width, 2 * width, 2 * width]
    return {"in_chans": 1, "num_classes": CLASSES, "depths": [*size.depths], "dims": dims}


def create_network(size: Size, width: int) -> nn.Module:
    """A ConvNeXt with random weights."""
    return create_model(NAME, pretrained=False, **arguments(size, width))


def sliced_weights(large: nn.Module, small: nn.Module) -> dict[str, torch.Tensor]:
    """The weights that a narrower network gets from a wider one: the first of each axis.

    Source: slimmable networks (Yu et al., 2019).
    """
    weights = dict(large.named_parameters())
    return {name: weights[name][tuple(map(slice, of.shape))] for name, of in small.named_parameters()}


class SlicedNetwork(nn.Module):
    """A network that also runs at smaller widths, each with the first channels of every layer.

    Args:
        network: The widest.
        size: That of the study, with all widths from the narrowest to the widest.
    """

    def __init__(self, network: nn.Module, size: Size):
        super().__init__()
        self.network = network
        with torch.device("meta"):
            # In a tuple, so that modules without weights of their own are not registered.
            self.shapes = tuple(create_network(size, width) for width in size.widths)

    def forward(self, x: torch.Tensor, width: int) -> torch.Tensor:
        """Logits `[B, classes]` of the network of a width, by its number."""
        logits: torch.Tensor = functional_call(self.shapes[width], sliced_weights(self.network, self.shapes[width]), x)
        return logits

    def alone(self, width: int, size: Size) -> nn.Module:
        """A copy of the network of a width, by its number."""
        return narrowed(self.network, size, size.widths[width])


def narrowed(large: nn.Module, size: Size, width: int) -> nn.Module:
    """A network of a width that begins with the first channels of a wider one."""
    small = create_network(size, width)
    state: Mapping[str, torch.Tensor] = {name: part.detach() for name, part in sliced_weights(large, small).items()}
    small.load_state_dict(state)
    return small

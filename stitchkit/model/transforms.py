"""What a stitching layer can be besides a linear map: maps `[..., in_channels]` to `[..., out_channels]`.

Also the update of low rank of a weight, which one of them has.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from stitchkit.settings.stitch_config import LayerKind


class _Factors(nn.Module):
    """The two factors of an update of low rank of a weight `[out_channels, in_channels]`.

    Source: Stitched ViTs are Flexible Vision Backbones, section 3.3; names and scale of the released code.
    """

    def add_factors(self, in_channels: int, out_channels: int, rank: int) -> None:
        """Give the module its factors, whose product is zero until they are trained."""
        self.rank = rank
        self.lora_A = nn.Parameter(torch.empty(rank, in_channels))
        self.lora_B = nn.Parameter(torch.zeros(out_channels, rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def update(self) -> torch.Tensor:
        """What is added to the weight."""
        return self.lora_B @ self.lora_A / self.rank


class WeightUpdate(_Factors):
    """An update of low rank of a weight that another module has."""

    def __init__(self, weight: torch.Tensor, rank: int):
        super().__init__()
        self.add_factors(weight.shape[1], weight.shape[0], rank)


class LowRank(_Factors, nn.Linear):
    """A linear map that trains only its bias and an update of low rank; its weight stays as it was fitted."""

    def __init__(self, in_channels: int, out_channels: int, rank: int):
        super().__init__(in_channels, out_channels)
        self.weight.requires_grad_(False)
        self.add_factors(in_channels, out_channels, rank)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The map; in training its two parts one after the other, because low precision would round the update away."""
        if self.training:
            return super().forward(x) + F.linear(F.linear(x, self.lora_A), self.lora_B) / self.rank
        return F.linear(x, self._sum(), self.bias)

    def _sum(self) -> torch.Tensor:
        return self.weight + self.update()

    def matrix(self) -> torch.Tensor:
        """The linear map `[in_channels + 1, out_channels]`, whose last row is the bias."""
        return torch.cat([self._sum().T, self.bias[None]])

    def set_map(self, matrix: torch.Tensor) -> None:
        """Become a linear map, without an update."""
        self.weight.copy_(matrix[:-1].T)
        self.bias.copy_(matrix[-1])
        self.lora_B.zero_()


class Mlp(nn.Module):
    """Two linear layers with a ReLU between them, which has twice as many channels as the front.

    Source: final feature matching, where it is better than a linear map at early joints; the initial weights, with
    which it equals a linear map, are ours.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.fc1 = nn.Linear(in_channels, 2 * in_channels)
        self.fc2 = nn.Linear(2 * in_channels, out_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The map."""
        y: torch.Tensor = self.fc2(self.fc1(x).relu())
        return y

    def set_map(self, matrix: torch.Tensor) -> None:
        """Become a linear map: x is the difference of the positive parts of x and of -x."""
        identity = torch.eye(self.fc1.in_features)
        self.fc1.weight.copy_(torch.cat([identity, -identity]))
        self.fc1.bias.zero_()
        self.fc2.weight.copy_(torch.cat([matrix[:-1], -matrix[:-1]]).T)
        self.fc2.bias.copy_(matrix[-1])


def transform_of(kind: LayerKind, rank: int) -> Callable[[int, int], LowRank | Mlp] | None:
    """What makes the map of a kind of stitching layer; None for the linear one."""
    return {"linear": None, "lowrank": partial(LowRank, rank=rank), "mlp": Mlp}[kind]

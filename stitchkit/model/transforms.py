"""What a stitching layer can be besides a linear map: maps `[..., in_channels]` to `[..., out_channels]`.

Also updates of low rank: of such a map, and of anchors' weights, for stitched routes; uncut anchors stay exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial

import torch
from torch import nn
from torch.amp.autocast_mode import is_autocast_available
from torch.func import functional_call
from torch.nn import functional as F

from stitchkit.errors import InputError
from stitchkit.networks.anchor import Anchor
from stitchkit.networks.slices import extract, parent_in
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


def anchor_updates(anchors: Sequence[Anchor], rank: int) -> nn.ModuleList:
    """The updates of each anchor; none at all if the rank is 0."""
    updates = nn.ModuleList(AnchorUpdates(anchor, rank) for anchor in anchors if rank)
    if rank and not [*updates.parameters()]:
        labels = ", ".join(anchor.label for anchor in anchors)
        raise InputError(
            f"the blocks of {labels} have no linear layers, so they cannot have low-rank updates; omit "
            "anchor_lora_r, and choose another --preserve, such as frozen"
        )
    return updates


class AnchorUpdates(nn.Module):
    """An update of the weight of every linear layer in the blocks of an anchor.

    Their names are the paths of the layers in the anchor's network, which itself does not change.

    Source: LoRA (Hu et al., ICLR 2022); that uncut anchors go without is ours.
    """

    def __init__(self, anchor: Anchor, rank: int):
        super().__init__()
        # By identity: a block of a traced network may use a weight without the module that has it.
        layers = anchor.model.named_modules()
        paths = {id(layer.weight): path for path, layer in layers if isinstance(layer, nn.Linear)}
        self._paths = [
            {name: paths[id(weight)] for name, weight in block.named_parameters() if id(weight) in paths}
            for block in anchor.blocks
        ]
        for path in dict.fromkeys(path for block in self._paths for path in block.values()):
            parent, name = parent_in(self, path)
            parent.add_module(name, WeightUpdate(anchor.model.get_submodule(path).get_parameter("weight"), rank))

    def applied_to(self, block: nn.Module, number: int) -> nn.Module:
        """A block of the anchor, given its number, with the updates; the block itself if it has no linear layer."""
        updates = {name: self.get_submodule(path) for name, path in self._paths[number].items()}
        return AdaptedBlock(block, updates) if updates else block


class AdaptedBlock(nn.Module):
    """A block that runs with updated weights, and shares its own with an anchor, which runs without the updates.

    Args:
        block: The block.
        updates: The update of each weight, by the weight's name in the block.
    """

    def __init__(self, block: nn.Module, updates: Mapping[str, nn.Module]):
        super().__init__()
        self.training = block.training
        self.block = block
        self.updates = nn.ModuleList(updates.values())
        self._names = tuple(updates)

    def _weights(self) -> dict[str, torch.Tensor]:
        """The updated weights by name. They are summed in the precision of the parameters, also in mixed precision."""
        weights = {}
        for name, update in zip(self._names, self.updates, strict=True):
            assert isinstance(update, WeightUpdate)
            kind = update.lora_A.device.type
            with torch.autocast(kind, enabled=False) if is_autocast_available(kind) else nullcontext():
                weights[name] = self.block.get_parameter(name) + update.update()
        return weights

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The block's output with the updated weights."""
        # The weights are replaced, not the layers: some attentions use the weight of a layer that they do not call.
        y: torch.Tensor = functional_call(self.block, self._weights(), (x,))
        return y

    @torch.no_grad()
    def folded(self) -> nn.Module:
        """A copy of the block whose weights are the updated ones."""
        block = extract(self.block)
        for name, weight in self._weights().items():
            block.get_parameter(name).copy_(weight)
        return block

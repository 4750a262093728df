"""Updates of low rank of anchors' weights: stitched routes have them, and uncut anchors, which stay exact, do not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext

import torch
from torch import nn
from torch.amp.autocast_mode import is_autocast_available
from torch.func import functional_call

from stitchkit.errors import InputError
from stitchkit.model.transforms import WeightUpdate
from stitchkit.networks.anchor import Anchor
from stitchkit.networks.slices import extract


def anchor_updates(anchors: Sequence[Anchor], rank: int) -> nn.ModuleList:
    """The updates of each anchor; none at all if the rank is 0."""
    updates = nn.ModuleList(AnchorUpdates(anchor, rank) for anchor in anchors if rank)
    if rank and not [*updates.parameters()]:
        labels = ", ".join(anchor.label for anchor in anchors)
        raise InputError(
            f"the blocks of {labels} have no linear layers, so they cannot have updates of low rank; leave "
            "anchor_lora_r out, and choose another --preserve, such as frozen"
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
            self._add(path, WeightUpdate(anchor.model.get_submodule(path).get_parameter("weight"), rank))

    def _add(self, path: str, update: WeightUpdate) -> None:
        *parents, name = path.split(".")
        parent_module: nn.Module = self
        for parent in parents:
            if parent not in parent_module._modules:
                parent_module.add_module(parent, nn.Module())
            parent_module = parent_module.get_submodule(parent)
        parent_module.add_module(name, update)

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

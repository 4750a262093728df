"""The stitching layer: the only new weights of an SN-Net.

It is a linear map unless a configuration asks for another: maps `[..., in_channels]` to `[..., out_channels]`. Updates
of low rank, of such a map or of anchors' weights, exist for stitched routes alone; uncut anchors stay exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import torch
from torch import nn
from torch.amp.autocast_mode import is_autocast_available
from torch.func import functional_call
from torch.nn import functional as F

from stitchkit.errors import InputError
from stitchkit.networks.anchor import Anchor
from stitchkit.networks.layout import Layout, convert, grids_between, with_prefix_tokens
from stitchkit.networks.slices import extract, parent_in
from stitchkit.routes import Joint
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


class StitchLayer(nn.Module):
    """A map from the channels of a front anchor to those of an end anchor, at each position.

    By default, it is linear with a bias: maps with channels first get a 1x1 convolution, others a linear layer.
    Positions are resized bilinearly if the end has another grid. The first prefix tokens stay, surplus ones are
    dropped, and missing ones are the mean of the positions.

    Args:
        source: The full layout of the front's output.
        target: The full layout of the end's input.
        transform: Makes another map of `[..., in_channels]` to `[..., out_channels]`, given both numbers.

    Source: SN-Net, section 3.2; between different grids and prefix tokens, ours.
    """

    def __init__(self, source: Layout, target: Layout, transform: Callable[[int, int], LowRank | Mlp] | None = None):
        super().__init__()
        self.layouts = source, target
        self._grids = grids_between(source, target)
        # A linear map and an interpolation commute: the map, by far the costlier, runs on the smaller grid.
        self._fits_first = self._grids is not None and math.prod(self._grids[1]) < math.prod(self._grids[0])
        self._is_channels_first = (target if self._fits_first else source).kind == "NCHW"
        self.transform: nn.Conv2d | nn.Linear | Mlp
        if transform is not None:
            self.transform = transform(source.width, target.width)
        elif self._is_channels_first:
            self.transform = nn.Conv2d(source.width, target.width, kernel_size=1)
        else:
            self.transform = nn.Linear(source.width, target.width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Activations of the front to those of the end, e.g. `[B, in_channels, H, W]` to `[B, H, W, out_channels]`."""
        return self._map(self.fit(x)) if self._fits_first else self.fit(self._map(x))

    def _map(self, x: torch.Tensor) -> torch.Tensor:
        is_moved = self._is_channels_first and not isinstance(self.transform, nn.Conv2d)
        y: torch.Tensor = self.transform(x.movedim(1, -1) if is_moved else x)
        return y.movedim(-1, 1) if is_moved else y

    def fit(self, x: torch.Tensor) -> torch.Tensor:
        """Activations of the front with the positions and prefix tokens of the end; their channels are the same."""
        # Without sizes: an anchor may also run on larger images than those it was built for.
        source, target = (layout.bare for layout in self.layouts)
        if self._grids is not None:
            sides = zip(source.sized(x).grid, *self._grids, strict=True)
            height, width = ((now * to + of // 2) // of for now, of, to in sides)
            target = replace(target, positions=(height, width) if target.is_map else (height * width,))
        if source.num_prefix_tokens:
            x = with_prefix_tokens(x, source.num_prefix_tokens, target.num_prefix_tokens)
            source = replace(source, num_prefix_tokens=target.num_prefix_tokens)
        return convert(x, source, target, class_token="avg")

    @torch.no_grad()
    def set_map(self, matrix: torch.Tensor) -> None:
        """Set the linear map `[in_channels + 1, out_channels]`; its last row is the bias."""
        if isinstance(self.transform, LowRank | Mlp):
            self.transform.set_map(matrix.to(next(self.transform.parameters())))
            return
        self.transform.weight.copy_(matrix[:-1].T.reshape(self.transform.weight.shape))
        assert self.transform.bias is not None
        self.transform.bias.copy_(matrix[-1])

    @torch.no_grad()
    def folded(self) -> StitchLayer:
        """This layer as it is exported: an update of low rank becomes a part of the weight."""
        if not isinstance(self.transform, LowRank):
            return self
        weight = self.transform.weight
        layer = StitchLayer(*self.layouts).to(weight.device, weight.dtype).train(self.training)
        layer.set_map(self.transform.matrix())
        return layer


def layouts_at(joint: Joint, front: Anchor, end: Anchor) -> tuple[Layout, Layout]:
    """The full layouts of the front's output and the end's input at a joint."""
    try:
        return _layouts(joint, front, end)
    except InputError as error:
        leave, enter = front.boundaries[joint.front_block + 1].after[0], end.boundaries[joint.end_block].before[0]
        raise InputError(
            f"{joint} ('{leave}' of {joint.front} to '{enter}' of {joint.end}) cannot be joined: {error}; "
            + _nearest(joint, front, end)
        ) from error


def _layouts(joint: Joint, front: Anchor, end: Anchor) -> tuple[Layout, Layout]:
    source, target = front.boundaries[joint.front_block + 1].layout, end.boundaries[joint.end_block].layout
    grids_between(source, target)
    _, height, width = front.input_size
    if height != width and source.positions != target.positions and "NLC" in (source.kind, target.kind):
        raise InputError(f"the rows and columns of tokens are known only for square images, not {height} x {width}")
    return source, target


def _nearest(joint: Joint, front: Anchor, end: Anchor) -> str:
    """The joint with the fewest blocks between it and a given one that can be joined, in words."""
    others = [
        Joint(front.label, leave, end.label, enter)
        for leave in range(len(front.boundaries) - 1)
        for enter in range(len(end.boundaries) - 1)
    ]
    for other in sorted(
        others, key=lambda other: abs(other.front_block - joint.front_block) + abs(other.end_block - joint.end_block)
    ):
        try:
            _layouts(other, front, end)
        except InputError:
            continue
        return f"the nearest that can be joined is {other}; choose its stage by 'stages', or other anchors"
    return "no block of these anchors can be joined; choose other anchors"

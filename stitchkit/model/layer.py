"""The stitching layer: the only new weights of an SN-Net."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from stitchkit.errors import InputError
from stitchkit.model.transforms import LowRank, Mlp
from stitchkit.networks.anchor import Anchor
from stitchkit.networks.layout import Layout, convert, grids_between, with_prefix_tokens
from stitchkit.routes import Joint


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

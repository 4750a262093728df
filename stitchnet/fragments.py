"""Fragments: a network cut at the inputs of its convolutions and linear layers, and between blocks of tokens."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from timm.layers import Conv2dSame, Linear
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from stitchkit.errors import InputError, prefixed
from stitchkit.networks.layout import Layout
from stitchkit.networks.slices import Boundary, Slice
from stitchkit.networks.steps import Steps

Reader = nn.Conv2d | nn.Linear
"""A layer that can take up a joint before it."""

_PLAIN = (nn.Conv2d.forward, Conv2dSame.forward, nn.Linear.forward, Linear.forward)
"""The `forward` of layers that only multiply by their weight."""


@dataclass(frozen=True, eq=False)
class Fragment:
    """Consecutive layers of a network."""

    network: str  # label of the network
    index: int  # its number among the `count` fragments of the network
    count: int
    start: Boundary | None  # its first boundary; None at the network's input
    stop: Boundary | None  # its last boundary; None at the network's output
    module: Slice  # the layers; they share the network's weights

    @property
    def layout(self) -> Layout:
        """The layout of its output."""
        return self.stop.layout.bare if self.stop else Layout("vector")

    @property
    def is_start(self) -> bool:
        """Whether its input is images."""
        return self.start is None

    @property
    def is_end(self) -> bool:
        """Whether its output is the network's."""
        return self.stop is None

    @property
    def name(self) -> str:
        """`network[index]`."""
        return f"{self.network}[{self.index}]"

    def readers(self, module: nn.Module) -> list[Reader]:
        """The first layers in the module, or in a copy of it, if maps can be folded into them.

        Empty if one of them does more with its weight than multiply by it, such as standardise it.
        """
        layers = [module.get_submodule(path) for path in (self.start.takers if self.start else ())]
        readers = [layer for layer in layers if isinstance(layer, Reader)]
        return readers if all(map(_is_plain, readers)) else []


def fragments(label: str, model: nn.Module, example: torch.Tensor) -> list[Fragment]:
    """The fragments of a network in their order: a start, middles, an end; `example` are images `[B, C, H, W]`.

    Source: StitchNet, section 3.1; released code.
    """
    with prefixed(f"network '{label}': "):
        cuts = places(model, example[:1])
    if not cuts:
        raise InputError(f"network '{label}' has no place where only one tensor crosses; use another network")
    ends = enumerate(pairwise([None, *cuts, None]))
    return [fragment_between(model, start, stop, label, index, len(cuts) + 1) for index, (start, stop) in ends]


def fragment_between(
    model: nn.Module, start: Boundary | None, stop: Boundary | None, label: str, index: int, count: int
) -> Fragment:
    """The fragment between two boundaries of a network."""
    # The tracer even for networks with a view, because most places are inside blocks.
    module = Steps(model).between(start.before[0] if start else None, stop.after[0] if stop else None)
    return Fragment(label, index, count, start, stop, module.eval())


def places(model: nn.Module, example: torch.Tensor) -> list[Boundary]:
    """The places where a network can be cut, in order, found with an example image `[1, C, H, W]`.

    These are the inputs of ungrouped convolutions and linear layers that nothing else reads, if the rest of the network
    depends on no other tensor; and the borders of blocks that pass tokens, or maps with their channels last. The takers
    of a boundary are the layers that can take up a joint.
    """
    # At the border of a block; convolutional networks are cut only at layers, as published.
    borders = [
        replace(border, takers=())
        for border, takers in _known_places(Steps(model, example), example)
        if len(takers) == 1 and list(takers[0].children()) and border.layout.channel_dim == -1
    ]
    with contextlib.suppress(InputError):  # some networks cannot be traced inside all blocks
        layers = Steps(model, example, deep=True)
        known = _known_places(layers, example)
        borders += [border for border, takers in known if takers and all(map(_is_reader, takers))]
        # If both graphs have a boundary, that of the layers is used: they can take up a joint.
        by_position = {layers.position(border): border for border in borders}
        borders = [by_position[position] for position in sorted(by_position)]
    return borders


def _known_places(steps: Steps, example: torch.Tensor) -> Iterator[tuple[Boundary, list[nn.Module]]]:
    """The places of known rows and columns, or of none, with the modules that take the tensor there."""
    is_square = example.shape[-2] == example.shape[-1]  # only then is the grid of tokens known
    paths = (str(node.target) for node in steps.flow.nodes if node.op == "call_module")
    readers = (path for path in paths if _is_reader(steps.model.get_submodule(path)))
    first = next(readers, None)  # there is no cut before it, even if its input is a normalised image
    for border in steps.boundaries:
        layout = border.found
        if layout is None or not layout.is_by_row or (layout.kind == "NLC" and not is_square):
            continue
        if first not in border.takers:
            yield border, [steps.model.get_submodule(path) for path in border.takers]


def _is_plain(layer: nn.Module) -> bool:
    # Parametrizations and, as in pruning, hooks recompute the weight, which would undo a folded map.
    return type(layer).forward in _PLAIN and not is_parametrized(layer) and not layer._forward_pre_hooks


def _is_reader(layer: nn.Module) -> bool:
    return isinstance(layer, Reader) and getattr(layer, "groups", 1) == 1

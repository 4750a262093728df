"""Fragments: a network cut at the inputs of its convolutions and linear layers, and between blocks of tokens."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from timm.layers import Conv2dSame, Linear
from torch import fx, nn
from torch.nn.utils.parametrize import is_parametrized

from stitchkit.errors import InputError
from stitchkit.networks.cut import cut
from stitchkit.networks.cut.flow import Flow
from stitchkit.networks.cut.trace import trace
from stitchkit.networks.layout import Layout, find_layout

_PLAIN = (nn.Conv2d.forward, Conv2dSame.forward, nn.Linear.forward, Linear.forward)
"""What layers do that only multiply by their weight."""


@dataclass(frozen=True)
class Place:
    """Where a network can be cut.

    Args:
        before: Name of the first layer or block after it.
        after: Name of what gives the tensor that crosses.
        readers: All layers that take the tensor, if they are all convolutions or linear layers: a joint can be folded
            into them. Empty at the border of a block.
        layout: The layout of the tensor.
    """

    before: str
    after: str
    readers: tuple[str, ...]
    layout: Layout


@dataclass(frozen=True, eq=False)
class Fragment:
    """Consecutive layers of a network.

    Args:
        network: Label of the network.
        index: Its number among the fragments of the network.
        count: Number of these.
        start: Where it begins; None at the network's input.
        stop: Where it ends; None at the network's output.
        module: The layers; they share the network's weights.
        layout: The layout of what leaves it.
    """

    network: str
    index: int
    count: int
    start: Place | None
    stop: Place | None
    module: nn.Module = field(repr=False)
    layout: Layout

    @property
    def is_start(self) -> bool:
        """Whether it takes images."""
        return self.start is None

    @property
    def is_end(self) -> bool:
        """Whether it gives what the network gives."""
        return self.stop is None

    @property
    def name(self) -> str:
        """`network[index]`."""
        return f"{self.network}[{self.index}]"

    def readers(self, module: nn.Module) -> list[tuple[str, nn.Conv2d | nn.Linear]]:
        """The first layers in the fragment's module, or in a copy of it, with their paths, where maps can be folded in.

        None where one of them does more with its weight than to multiply by it, such as to standardise it.

        Args:
            module: `self.module`, or a copy.
        """
        found: list[tuple[str, nn.Conv2d | nn.Linear]] = []
        for path in self.start.readers if self.start else ():
            layer = module.get_submodule(path)
            assert isinstance(layer, nn.Conv2d | nn.Linear)
            found.append((path, layer))
        return found if all(_is_plain(layer) for _, layer in found) else []


def fragments(label: str, model: nn.Module, example: torch.Tensor) -> list[Fragment]:
    """The fragments of a network in the order they run: a start, middles, an end.

    Args:
        label: What they are called by.
        model: Any module that takes images and that torch.fx can trace between its blocks.
        example: Images `[B, C, H, W]` that it takes.

    Raises:
        InputError: If the network cannot be traced, or has no place to be cut at.

    Source: StitchNet, section 3.1; released code.
    """
    try:
        cuts = places(model, example[:1])
    except InputError as error:
        raise InputError(f"network '{label}': {error}") from error
    if not cuts:
        raise InputError(f"network '{label}' has no place where one tensor alone crosses; take another network")
    return between(label, model, cuts)


def between(label: str, model: nn.Module, cuts: Sequence[Place]) -> list[Fragment]:
    """The fragments between places.

    Args:
        label: What they are called by.
        model: The network.
        cuts: Where it is cut, in order.
    """
    ends: list[Place | None] = [None, *cuts, None]
    return [_fragment(label, model, ends, index) for index in range(len(cuts) + 1)]


def _fragment(label: str, model: nn.Module, ends: list[Place | None], index: int) -> Fragment:
    start, stop = ends[index : index + 2]
    module = cut(model, block_input=start.before if start else None, block_output=stop.after if stop else None).eval()
    return Fragment(label, index, len(ends) - 1, start, stop, module, stop.layout if stop else Layout("vector"))


def places(model: nn.Module, example: torch.Tensor) -> list[Place]:
    """Where a network can be cut, in order.

    At the input of ungrouped convolutions and linear layers, if they alone take it and the rest of the network depends
    on nothing else. At the border of a block, if what passes are tokens or maps with their channels last.

    Args:
        model: The network.
        example: An image `[1, C, H, W]` that it takes.

    Raises:
        InputError: If the network cannot be traced between its blocks.
    """
    graphs = [_flows(model, deep=False)]
    with contextlib.suppress(InputError):  # some cannot be traced into all their blocks
        graphs.append(_flows(model, deep=True))
    last = graphs[-1][0]
    found: dict[int, Place] = {}
    for deep, (flow, training) in enumerate(graphs):
        clean = {training.labels[node] for node in training.clean}
        for place in _places(model, flow, example, inside=bool(deep)):
            if place.after in clean:
                found[last.place[last.leaving(place.after)[0]]] = place
    return [found[position] for position in sorted(found)]


def _flows(model: nn.Module, *, deep: bool) -> tuple[Flow, Flow]:
    """What flows where in evaluation and in training mode."""
    evaluation, training = (Flow(trace(model, training=training, deep=deep)) for training in (False, True))
    return evaluation, training


def _places(model: nn.Module, flow: Flow, example: torch.Tensor, *, inside: bool) -> Iterator[Place]:
    """The places between layers, or those between blocks, that a graph shows."""
    shapes = flow.trace.shapes(example)
    # The first layer is no place, even where its input is not the image itself but what normalises it.
    first = next((node for node in flow.nodes if node.op == "call_module" and _is_reader(_layer(model, node))), None)
    for node in flow.nodes[1:-1]:
        users = flow.after(node)
        if node not in flow.clean or node not in shapes or first in users:
            continue
        if any(user.op != "call_module" for user in users):
            continue
        layers = [_layer(model, user) for user in users]
        layout = find_layout(shapes[node], model, (example.shape[2], example.shape[3]))
        names = flow.labels[users[0]], flow.labels[node]
        if layout is None:
            continue
        if inside and all(map(_is_reader, layers)):
            yield Place(*names, tuple(str(user.target) for user in users), layout)
        elif not inside and layout.channel_dim == -1 and len(layers) == 1 and any(True for _ in layers[0].children()):
            # Convolutional networks are cut at their layers alone, as published.
            yield Place(*names, (), layout)


def _layer(model: nn.Module, node: fx.Node) -> nn.Module:
    return model.get_submodule(str(node.target))


def _is_plain(layer: nn.Module) -> bool:
    # Weights are also computed anew by parametrizations and, as pruning does it, by hooks.
    return type(layer).forward in _PLAIN and not is_parametrized(layer) and not layer._forward_pre_hooks


def _is_reader(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)

"""Boundaries between the steps of a network, and slices, which run some of the steps or a part of its traced graph."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from operator import attrgetter
from typing import Any, TypeVar

import torch
from torch import fx, nn
from torch.fx.node import Argument, map_arg
from torch.utils._pytree import tree_map

from stitchkit.errors import InputError
from stitchkit.networks.cut.flow import Flow, check_slice, place_after, place_before
from stitchkit.networks.cut.sized import is_of_images
from stitchkit.networks.cut.tracer import INPUT, paths_to
from stitchkit.networks.layout import Layout
from stitchkit.networks.mode import evaluating

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Boundary:
    """The end of one step of a network and the beginning of the next.

    Args:
        before: Names of the nodes that begin there, the smallest first: a module's path, or the path of the module
            that runs a function and the function's name.
        after: Names of the nodes that end there, likewise.
        takers: Paths of the modules that take the tensor; empty if functions take it too.
        found: The full layout of the tensor; None without an example, or if its axes cannot be determined.
    """

    before: tuple[str, ...]
    after: tuple[str, ...]
    takers: tuple[str, ...] = ()
    found: Layout | None = None

    @property
    def layout(self) -> Layout:
        """The full layout of the tensor that passes."""
        if self.found is None:
            raise InputError(f"the layout of the tensor from '{self.after[0]}' to '{self.before[0]}' is unknown")
        return self.found


@dataclass(frozen=True)
class Node:
    """A name that `Steps.between` takes, and the module or function behind it.

    Args:
        kind: The module's class, or `function`.
        is_clean: Whether only one tensor passes from it to the rest of the network, so that one slice may end and the
            next begin there.
        shape: Shape of its output; None without an example, or if it is not one tensor.
    """

    name: str
    kind: str
    is_clean: bool
    shape: tuple[int, ...] | None = None


class Slice(nn.Module):
    """Consecutive steps of a network as a module of their own.

    Modules, parameters and buffers are the network's, under the network's names; those that the steps do not need are
    left out. Modes are shared too: `eval()` on a slice is `eval()` on the modules that it shares with the network. But
    code outside of modules that depends on the mode follows the slice's own mode, so set it on the slice, not on the
    network. Move the network to its device before slices are taken, or all slices afterwards.

    Args:
        start: Where it begins; None for the network's input.
        stop: Where it ends; None for the network's output, or if several tensors leave.
    """

    def __init__(self, model: nn.Module, start: Boundary | None, stop: Boundary | None):
        super().__init__()
        self.start, self.stop = start, stop
        self.training = model.training

    def _take(self, model: nn.Module, path: str) -> None:
        """Share a module or tensor of the model under its path; one that the model does not have is skipped."""
        # Empty modules stand in for its parents, which would bring all their other children along.
        *parents, name = path.split(".")
        source: nn.Module = model
        target: nn.Module = self
        for parent in parents:
            source = source.get_submodule(parent)
            if parent not in target._modules:
                target.add_module(parent, nn.Module())
            target = target.get_submodule(parent)
        for table in ("_parameters", "_buffers", "_modules"):
            if name in getattr(source, table):
                getattr(target, table)[name] = getattr(source, table)[name]
                target._non_persistent_buffers_set |= {name} & source._non_persistent_buffers_set
                return
        value = getattr(source, name, None)
        if isinstance(value, torch.Tensor):  # a plain attribute must move with the slice, but is not in checkpoints
            target.register_buffer(name, value, persistent=False)


class Code:
    """A part of a network's graph as code, which has one graph for evaluation and one for training.

    Args:
        graphs: The graph for evaluation and the one for training.
    """

    paths: tuple[str, ...]
    """The modules, tensors and held constants that it uses."""

    def __init__(self, graphs: Sequence[fx.Graph]):
        nodes = {
            str(node.target): node for graph in graphs for node in graph.nodes if node.op in ("call_module", "get_attr")
        }
        whole = {target for target, node in nodes.items() if node.op == "call_module"}
        self.paths = tuple(target for target in nodes if whole.isdisjoint(paths_to(target)[:-1]))
        self._sources = [(code.src, code.globals) for code in (graph.python_code("self") for graph in graphs)]
        self._run = [_compile(*source) for source in self._sources]

    def __getstate__(self) -> dict[str, Any]:
        # Functions without a module, and modules, which are in the names of every graph, cannot be pickled.
        names = [
            (source, {name: used[name] for name in used.keys() - _names_of_all()}) for source, used in self._sources
        ]
        return {"paths": self.paths, "_sources": names}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state)
        self._run = [_compile(*source) for source in self._sources]

    def __call__(self, module: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """Run the graph of the module's mode; the result may be a tuple."""
        return self._run[module.training](module, x)


class TracedSlice(Slice):
    """A slice that runs a part of its network's graph."""

    def __init__(self, model: nn.Module, graphs: Sequence[fx.Graph], start: Boundary | None, stop: Boundary | None):
        super().__init__(model, start, stop)
        self._run = Code(graphs)
        for path in self._run.paths:
            self._take(model, path)
        hold_constants(self, graphs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the graph of the current mode; the result may be a tuple."""
        return self._run(self, x)


def hold_constants(module: nn.Module, graphs: Sequence[fx.Graph]) -> None:
    """Give a module what only its graphs have: tensors as buffers, which move with it and are in no checkpoint."""
    for node in (node for graph in graphs for node in graph.nodes if "constant" in node.meta):
        name, value = str(node.target), node.meta["constant"]
        if isinstance(value, torch.Tensor):
            module.register_buffer(name, value, persistent=False)
        else:
            setattr(module, name, value)


def _compile(source: str, names: Mapping[str, Any]) -> Callable[[nn.Module, torch.Tensor], torch.Tensor]:
    """Code as a function of its module and its input."""
    known = {**_names_of_all(), **names}
    exec(source, known)  # as torch.fx runs its graphs
    forward: Callable[[nn.Module, torch.Tensor], torch.Tensor] = known["forward"]
    return forward


@cache
def _names_of_all() -> dict[str, Any]:
    """The names that torch.fx gives to the code of every graph, such as `torch`."""
    return fx.Graph().python_code("self").globals


def graph_named(
    flow: Flow, model: nn.Module, first: str, last: str | Sequence[str] | None
) -> tuple[fx.Graph, fx.Node, Argument]:
    """The graph between named nodes, the tensor that enters it, and its result."""
    names = [last] if isinstance(last, str) else list(last or ())
    start, stops = place_before(flow, first), {name: place_after(flow, name) for name in names}
    check_slice(flow, first, start, stops, alone=isinstance(last, str))
    result: Argument = flow.result if last is None else tuple(stops[name] for name in names)
    if isinstance(last, str):
        result = stops[last]
    kept = sorted(set(stops.values()), key=flow.place.__getitem__)[:-1]
    return graph_between(flow, model, start, result, kept), start, result


def graph_between(
    flow: Flow, model: nn.Module, start: fx.Node, result: Argument, kept: Sequence[fx.Node] = ()
) -> fx.Graph:
    """The graph that computes a result from `start`; `kept` nodes have the value that they had before later ones ran.

    A constant that only the trace has, not the model, is in the `meta` of its node.
    """
    ends: list[fx.Node] = []
    map_arg(result, ends.append)
    needed = flow.between({start}, ends)
    graph = fx.Graph()
    entered = graph.placeholder(INPUT)
    # A slice must not change its input, as the network does not change its images.
    copies = {start: graph.call_function(snapshot, (entered,)) if flow.is_changed(start) else entered}
    snapshots: dict[fx.Node, fx.Node] = {}
    for node in flow.trace.graph.nodes:
        if node not in needed or node is start:
            continue
        if is_of_images(node):
            copies[node] = graph.node_copy(node, lambda _: entered)
            continue
        copies[node] = twin = graph.node_copy(node, copies.__getitem__)
        if node in kept:  # later nodes may work in place
            snapshots[node] = graph.call_function(snapshot, (twin,))
        if node.op == "get_attr" and not _has(model, str(node.target)):
            twin.target = f"{node.target}_{'training' if flow.trace.training else 'evaluation'}"
            twin.meta["constant"] = attrgetter(str(node.target))(flow.trace.root)
    graph.output(map_arg(result, (copies | snapshots).__getitem__))
    return graph


def snapshot(value: object) -> object:
    """A differentiable copy that no later layer can change in place, also of tensors in lists and tuples."""
    return tree_map(lambda part: part.clone() if hasattr(part, "clone") else part, value)


def _has(model: nn.Module, path: str) -> bool:
    try:
        attrgetter(path)(model)
    except AttributeError:
        return False
    return True


def extract(module: Module) -> Module:
    """A copy of a module with weights of its own; every module in it keeps its mode."""
    with evaluating(module):  # timm's LeViT caches tensors that cannot be copied until its mode is set
        twin = copy.deepcopy(module)
    for copied, own in zip(twin.modules(), module.modules(), strict=True):
        copied.training = own.training
    return twin

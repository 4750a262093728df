"""Slices that run a part of a network's graph, as torch.fx traced it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter

import torch
from torch import fx, nn
from torch.fx.node import Argument, map_arg
from torch.utils._pytree import tree_map

from stitchkit.networks.cut.flow import Flow
from stitchkit.networks.cut.refusal import check_slice, place_after, place_before
from stitchkit.networks.cut.trace import paths_to
from stitchkit.networks.slices import INPUT, Boundary, Slice


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
    given: dict[fx.Node, fx.Node] = {}
    for node in flow.trace.graph.nodes:
        if node not in needed or node is start:
            continue
        copies[node] = copy = graph.node_copy(node, copies.__getitem__)
        if node in kept:  # later nodes may work in place
            given[node] = graph.call_function(snapshot, (copy,))
        if node.op == "get_attr" and not _has(model, str(node.target)):
            copy.target = f"{node.target}_{'training' if flow.trace.training else 'evaluation'}"
            copy.meta["constant"] = attrgetter(str(node.target))(flow.trace.root)
    graph.output(map_arg(result, (copies | given).__getitem__))
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


class TracedSlice(Slice):
    """A slice that runs a part of its network's graph, which has one graph for evaluation and one for training.

    It contains generated code, so torch cannot pickle it.
    """

    def __init__(self, model: nn.Module, graphs: Sequence[fx.Graph], start: Boundary | None, stop: Boundary | None):
        super().__init__(model, start, stop)
        nodes = {
            str(node.target): node for graph in graphs for node in graph.nodes if node.op in ("call_module", "get_attr")
        }
        whole = {target for target, node in nodes.items() if node.op == "call_module"}
        for target, node in nodes.items():
            if "constant" not in node.meta:
                if whole.isdisjoint(paths_to(target)[:-1]):
                    self._take(model, target)
            elif isinstance(constant := node.meta["constant"], torch.Tensor):
                self.register_buffer(target, constant, persistent=False)
            else:
                setattr(self, target, constant)
        self._run = list(map(_compile, graphs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the graph of the current mode; the result may be a tuple."""
        return self._run[self.training](self, x)


def _compile(graph: fx.Graph) -> Callable[[nn.Module, torch.Tensor], torch.Tensor]:
    """A graph as a function of its module and its input."""
    code = graph.python_code("self")
    names = dict(code.globals)
    exec(code.src, names)  # as torch.fx runs its graphs
    forward: Callable[[nn.Module, torch.Tensor], torch.Tensor] = names["forward"]
    return forward

"""Steps of any network that torch.fx can trace, and slices that run a part of its graph."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter

import torch
from torch import fx, nn
from torch.fx.node import Argument, map_arg

from stitchkit.errors import InputError, unknown
from stitchkit.networks.cut.flow import Flow
from stitchkit.networks.cut.refusal import CutPlaces
from stitchkit.networks.cut.trace import is_layer, trace
from stitchkit.networks.layout import Layout, find_layout
from stitchkit.networks.steps import INPUT, Boundary, Node, Slice, Steps


class TracedSteps(Steps):
    """The steps between a network's clean places in both modes; none changes the output of the previous one in place.

    Args:
        model: Any module that takes one tensor and that torch.fx can trace between its blocks.
        example: An input that determines the layouts; on the meta device if the model is, so that nothing is computed.
        deep: Trace into every module that can be traced, so that steps may begin and end inside blocks.
    """

    def __init__(self, model: nn.Module, example: torch.Tensor | None = None, *, deep: bool = False):
        super().__init__(model)
        self._example = example
        self._deep = deep

    @cached_property
    def flow(self) -> Flow:
        """The flow of tensors in evaluation mode."""
        return Flow(trace(self.model, deep=self._deep))

    @cached_property
    def _training_flow(self) -> Flow:
        return Flow(trace(self.model, training=True, deep=self._deep))

    @cached_property
    def _shapes(self) -> Mapping[fx.Node, tuple[int, ...]]:
        return {} if self._example is None else self.flow.trace.shapes(self._example)

    @cached_property
    def _cuts(self) -> list[tuple[fx.Node, fx.Node]]:
        """The tensors between the steps, as nodes in evaluation mode and in training mode."""
        # In training, a network may take other paths, such as auxiliary heads; a cut must be clean in both modes.
        found, training = (_clean_places(flow, self.model) for flow in (self.flow, self._training_flow))
        pairs = [(found[label], training[label]) for label in found if label in training]
        return [(node, other) for node, other in pairs if self._example is None or node in self._shapes]

    @cached_property
    def boundaries(self) -> tuple[Boundary, ...]:
        """The boundaries between the steps."""
        return tuple(self._boundary(self.flow, node, self._layout(node)) for node, _ in self._cuts)

    @property
    def module_paths(self) -> list[str]:
        """Paths of the modules that are not traced into, in the order they run."""
        return [str(node.target) for node in self.flow.nodes if node.op == "call_module"]

    def position(self, boundary: Boundary) -> int:
        """The place in the graph of a boundary, which may come from a trace at another depth."""
        return self.flow.place[self.flow.leaving(boundary.after[0])[0]]

    def _slice(self, first: int, last: int, start: Boundary | None, stop: Boundary | None) -> TracedSlice:
        def graph(mode: int, flow: Flow) -> SliceGraph:
            ends = [flow.source, *(nodes[mode] for nodes in self._cuts), flow.result]
            return _graph_between(flow, self.model, ends[first], ends[last])

        return TracedSlice(self.model, graph(0, self.flow), graph(1, self._training_flow), start, stop)

    def between(self, block_input: str | None = None, block_output: str | Sequence[str] | None = None) -> TracedSlice:
        """The slice from where one node begins to where another ends."""
        first = INPUT if block_input is None else block_input
        outputs = [block_output] if isinstance(block_output, str) else list(block_output or ())
        if block_output is not None and not outputs:
            raise InputError("block_output is an empty list; name at least one node, or leave it out")
        # Only as deep as the names require, because many blocks cannot be traced.
        flow, training_flow = (Flow(trace(self.model, [first, *outputs], training=mode)) for mode in (False, True))
        graph, *ends = _graph_named(flow, self.model, first, block_output)
        try:
            training, *_ = _graph_named(training_flow, self.model, first, block_output)
        except InputError as error:
            raise InputError(f"in training mode, {error}") from error
        borders = (None, flow.source, flow.result)
        start, stop = (None if end in borders else self._boundary(flow, end) for end in ends)
        return TracedSlice(self.model, graph, training, start, stop)

    def nodes(self, example: torch.Tensor | None = None, *, inside: Collection[str] = ()) -> list[Node]:
        """The names that `between` takes."""
        modules = {path: module for path, module in self.model.named_modules() if path}
        for path in inside:
            if path not in modules:
                raise unknown("module", path, modules)
            if is_layer(modules[path]):
                kind = type(modules[path]).__name__
                raise InputError(f"'{path}' is one layer, a {kind}, with no nodes inside; name a block")
        traced = trace(self.model, [f"{path}.{INPUT}" for path in inside])
        flow = Flow(traced)
        shapes = {} if example is None else traced.shapes(example)
        found = []
        for name, region in flow.regions.items():
            leaving = flow.leaving(name)
            shape = shapes.get(leaving[0]) if len(leaving) == 1 else None
            is_clean = len(leaving) == 1 and leaving[0] in flow.clean and (example is None or shape is not None)
            if leaving:
                found.append(Node(name, _kind(self.model, name, region), is_clean, shape))
        return found

    @staticmethod
    def _boundary(flow: Flow, node: fx.Node, layout: Layout | None = None) -> Boundary:
        users = flow.after(node)
        before = dict.fromkeys([flow.labels[user] for user in users[:1] if user is not flow.sink] + flow.begins[node])
        takers = [str(user.target) for user in users if user.op == "call_module"]
        after = dict.fromkeys([flow.labels[node], *flow.ends[node]])
        return Boundary(tuple(before), tuple(after), tuple(takers) if len(takers) == len(users) else (), layout)

    def _layout(self, node: fx.Node) -> Layout | None:
        if self._example is None or self._example.ndim != 4:
            return None
        height, width = self._example.shape[2:]
        layout = find_layout(self._shapes[node], self.model, (height, width))
        return layout and layout.sized(torch.empty(self._shapes[node], device="meta"))


def _clean_places(flow: Flow, model: nn.Module) -> dict[str, fx.Node]:
    """The tensors between steps, by name, without those that a layer changes in place."""
    inner = (node for node in flow.nodes[1:-1] if node is not flow.result)
    return {flow.labels[node]: node for node in inner if node in flow.clean and not _is_changed(node, model)}


def _kind(model: nn.Module, name: str, region: list[fx.Node]) -> str:
    path = str(region[0].target) if len(region) == 1 and region[0].op == "call_module" else name
    try:
        return type(model.get_submodule(path)).__name__
    except AttributeError:
        return "function" if name != INPUT else "input"


def _is_changed(node: fx.Node, model: nn.Module) -> bool:
    """Whether a layer changes a node's value in place."""

    def changes(user: fx.Node) -> bool:
        if user.op == "call_module":
            return getattr(model.get_submodule(str(user.target)), "inplace", False)
        return bool(user.kwargs.get("inplace")) or (user.op == "call_method" and str(user.target).endswith("_"))

    return any(map(changes, node.users))


@dataclass(frozen=True)
class SliceGraph:
    """The graph of a slice in one mode, and by name the constants in it that are not attributes of the model."""

    graph: fx.Graph
    constants: Mapping[str, object]


def _graph_named(
    flow: Flow, model: nn.Module, first: str, last: str | Sequence[str] | None
) -> tuple[SliceGraph, fx.Node, fx.Node | None]:
    """The graph between two named nodes, and the tensors at both ends."""
    places = CutPlaces(flow, model)
    start = places.start(first)
    if last is None:
        places.check(first, start, {})
        return _graph_between(flow, model, start, flow.result), start, None
    if isinstance(last, str):
        stop = places.stop(last)
        places.check(first, start, {last: stop}, alone=True)
        return _graph_between(flow, model, start, stop), start, stop
    stops = {name: places.stop(name) for name in last}
    places.check(first, start, stops)
    listed = sorted(set(stops.values()), key=flow.place.__getitem__)
    return _graph_between(flow, model, start, tuple(stops[name] for name in last), listed), start, None


def _graph_between(
    flow: Flow, model: nn.Module, start: fx.Node, result: Argument, listed: Sequence[fx.Node] = ()
) -> SliceGraph:
    """The graph that computes a result from `start`; `listed` nodes, in order, keep the value that they have there."""
    ends: list[fx.Node] = []
    map_arg(result, ends.append)
    needed = flow.between({start}, ends)
    graph, constants = fx.Graph(), dict[str, object]()
    entered = graph.placeholder(INPUT)
    # A slice must not change its input, as the network does not change its images.
    copies = {start: graph.call_function(snapshot, (entered,)) if _is_changed(start, model) else entered}
    given: dict[fx.Node, fx.Node] = {}
    for node in flow.trace.graph.nodes:
        if node not in needed or node is start:
            continue
        copies[node] = copy = graph.node_copy(node, copies.__getitem__)
        if node in listed[:-1]:  # later nodes may work in place
            given[node] = graph.call_function(snapshot, (copy,))
        if node.op == "get_attr" and not _has(model, str(node.target)):
            copy.target = f"{node.target}_{'training' if flow.trace.training else 'evaluation'}"
            constants[copy.target] = attrgetter(str(node.target))(flow.trace.root)
    graph.output(map_arg(result, (copies | given).__getitem__))
    return SliceGraph(graph, constants)


def snapshot(value: object) -> object:
    """A differentiable copy that no later layer can change in place, also of tensors in lists and tuples."""
    if isinstance(value, list | tuple):
        return [snapshot(item) for item in value] if isinstance(value, list) else tuple(map(snapshot, value))
    return value.clone() if hasattr(value, "clone") else value


def _has(model: nn.Module, path: str) -> bool:
    try:
        attrgetter(path)(model)
    except AttributeError:
        return False
    return True


class TracedSlice(Slice):
    """A slice that runs a part of its network's graph. It contains generated code, so torch cannot pickle it."""

    def __init__(
        self,
        model: nn.Module,
        evaluation: SliceGraph,
        training: SliceGraph,
        start: Boundary | None,
        stop: Boundary | None,
    ):
        super().__init__(model, start, stop)
        nodes = [node for part in (evaluation, training) for node in part.graph.nodes]
        whole = {str(node.target) for node in nodes if node.op == "call_module"}
        constants = {**evaluation.constants, **training.constants}
        for target in dict.fromkeys(str(node.target) for node in nodes if node.op in ("call_module", "get_attr")):
            parts = target.split(".")
            if target in constants:
                self._keep(target, constants[target])
            elif not any(".".join(parts[:end]) in whole for end in range(1, len(parts))):
                self._take(model, target)
        self._run = [_compile(part.graph) for part in (evaluation, training)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the graph of the current mode; the result may be a tuple."""
        return self._run[self.training](self, x)

    def _keep(self, name: str, value: object) -> None:
        if isinstance(value, torch.Tensor):
            self.register_buffer(name, value, persistent=False)
        else:
            setattr(self, name, value)


def _compile(graph: fx.Graph) -> Callable[[nn.Module, torch.Tensor], torch.Tensor]:
    """A graph as a function of its module and its input."""
    code = graph.python_code("self")
    names = dict(code.globals)
    exec(code.src, names)  # as torch.fx runs its graphs
    forward: Callable[[nn.Module, torch.Tensor], torch.Tensor] = names["forward"]
    return forward

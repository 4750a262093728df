"""Any network as steps: the boundaries between them, and its slices."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property

import torch
from torch import fx, nn

from stitchkit.errors import InputError, unknown
from stitchkit.networks.cut.flow import Flow
from stitchkit.networks.cut.sized import shapes
from stitchkit.networks.cut.trace import trace
from stitchkit.networks.cut.tracer import INPUT, is_layer
from stitchkit.networks.layout import Layout, find_layout
from stitchkit.networks.slices import Boundary, Node, Slice, TracedSlice, graph_between, graph_named


class Steps:
    """A network as a sequence of steps with one tensor between neighbours.

    Run one after the other, the steps are the network. `steps[2]`, `steps[2:5]` and the part between two names are
    slices. A view, if there is one, says where the boundaries are. Otherwise the tracer finds them: the network's clean
    places in both modes, at tensors that no later layer changes in place.

    Args:
        model: Any module that takes one tensor and that torch.fx can trace between its blocks.
        example: An input that determines the layouts; on the meta device if the model is, so that nothing is computed.
        deep: Trace into every module that can be traced, so that steps may begin and end inside blocks.
    """

    def __init__(self, model: nn.Module, example: torch.Tensor | None = None, *, deep: bool = False):
        self.model = model
        self._example = example
        self._deep = deep

    def __len__(self) -> int:
        return len(self.boundaries) + 1

    def __getitem__(self, index: int | slice) -> Slice:
        numbers = range(len(self))[index]
        if isinstance(numbers, int):
            numbers = range(numbers, numbers + 1)
        if not numbers or numbers.step != 1:
            raise InputError(f"{index} does not select consecutive steps; there are {len(self)}")
        ends = (None, *self.boundaries, None)
        return self._slice(numbers.start, numbers.stop, ends[numbers.start], ends[numbers.stop])

    @cached_property
    def flow(self) -> Flow:
        """The flow of tensors in evaluation mode."""
        return Flow(trace(self.model, deep=self._deep, example=self._example))

    @cached_property
    def _training_flow(self) -> Flow:
        return Flow(trace(self.model, training=True, deep=self._deep, example=self._example))

    @cached_property
    def _shapes(self) -> Mapping[fx.Node, tuple[int, ...]]:
        return {} if self._example is None else shapes(self.flow.trace.graph)

    @cached_property
    def _cuts(self) -> list[tuple[fx.Node, fx.Node]]:
        """The tensors between the steps, as nodes in evaluation mode and in training mode."""
        # In training, a network may take other paths, such as auxiliary heads; a cut must be clean in both modes.
        clean, training = (
            {
                flow.labels[node]: node
                for node in flow.nodes[1:-1]
                if node is not flow.result and node in flow.clean and not flow.is_changed(node)
            }
            for flow in (self.flow, self._training_flow)
        )
        pairs = [(clean[label], training[label]) for label in clean if label in training]
        return [(node, other) for node, other in pairs if self._example is None or node in self._shapes]

    @cached_property
    def boundaries(self) -> tuple[Boundary, ...]:
        """The boundaries between the steps: entry `j` lies between steps `j` and `j + 1`."""
        return tuple(_boundary(self.flow, node, self._layout(node)) for node, _ in self._cuts)

    @property
    def module_paths(self) -> list[str]:
        """Paths of the modules that are not traced into, in the order they run."""
        return [str(node.target) for node in self.flow.nodes if node.op == "call_module"]

    def position(self, boundary: Boundary) -> int:
        """The place in the graph of a boundary, which may come from a trace at another depth."""
        return self.flow.place[self.flow.leaving(boundary.after[0])[0]]

    def graphs(self, first: int, last: int) -> list[fx.Graph]:
        """The graphs of the steps from `first` to before `last`, in evaluation mode and in training mode."""
        graphs = []
        for mode, flow in enumerate((self.flow, self._training_flow)):
            ends = [flow.source, *(nodes[mode] for nodes in self._cuts), flow.result]
            graphs.append(graph_between(flow, self.model, ends[first], ends[last]))
        return graphs

    def graphs_to(self, end: Callable[[Flow], fx.Node | None], first: int) -> list[fx.Graph]:
        """The graphs from the boundary `first` to a node, in both modes; none if it lies before, or is not clean."""
        graphs = []
        for mode, flow in enumerate((self.flow, self._training_flow)):
            start, node = self._cuts[first][mode], end(flow)
            if node is None or node not in flow.clean | {flow.result} or flow.place[node] < flow.place[start]:
                return []
            graphs.append(graph_between(flow, self.model, start, node))
        return graphs

    def _slice(self, first: int, last: int, start: Boundary | None, stop: Boundary | None) -> Slice:
        return TracedSlice(self.model, self.graphs(first, last), start, stop)

    def between(self, block_input: str | None = None, block_output: str | Sequence[str] | None = None) -> Slice:
        """The slice from where one node begins to where another ends.

        A node is a whole module, by its path, or a function, by the path of the module that runs it and its own
        name: `layer3.0.add`. The name of a second call of either ends with `_1`. `x` is the network's input.

        Args:
            block_input: Where the slice begins; the network's input by default.
            block_output: Where it ends; the network's output by default. Given a list, the slice returns a tuple of
                tensors, which may lie inside a skip connection.
        """
        first = INPUT if block_input is None else block_input
        outputs = [block_output] if isinstance(block_output, str) else list(block_output or ())
        if block_output is not None and not outputs:
            raise InputError("block_output is an empty list; name at least one node, or drop the key")
        # Only as deep as the names require, because many blocks cannot be traced.
        flow, training_flow = (Flow(trace(self.model, [first, *outputs], training=mode)) for mode in (False, True))
        graph, *ends = graph_named(flow, self.model, first, block_output)
        try:
            training, *_ = graph_named(training_flow, self.model, first, block_output)
        except InputError as error:
            raise InputError(f"in training mode, {error}") from error
        borders = (flow.source, flow.result)
        start, stop = (
            _boundary(flow, end) if isinstance(end, fx.Node) and end not in borders else None for end in ends
        )
        return TracedSlice(self.model, [graph, training], start, stop)

    def nodes(self, example: torch.Tensor | None = None, *, inside: Collection[str] = ()) -> list[Node]:
        """The names that `between` takes, in the order they begin: the network's blocks, and the nodes between them.

        Args:
            example: An input that determines the shapes; on the meta device if the network is, so that nothing is
                computed.
            inside: Paths of modules whose inner nodes are listed too.
        """
        modules = {path: module for path, module in self.model.named_modules() if path}
        for path in inside:
            if path not in modules:
                raise unknown("module", path, modules)
            if is_layer(modules[path]):
                kind = type(modules[path]).__name__
                raise InputError(f"'{path}' is one layer, a {kind}, with no nodes inside; name a block")
        flow = Flow(trace(self.model, [f"{path}.{INPUT}" for path in inside]))
        shapes = {} if example is None else flow.trace.shapes(example)
        nodes = []
        for name, region in flow.regions.items():
            leaving = flow.leaving(name)
            shape = shapes.get(leaving[0]) if len(leaving) == 1 else None
            is_clean = len(leaving) == 1 and leaving[0] in flow.clean and (example is None or shape is not None)
            if leaving:
                # A module that was not traced into is one node, whose name may be numbered.
                path = str(region[0].target) if len(region) == 1 and region[0].op == "call_module" else name
                kind = type(modules[path]).__name__ if path in modules else "function" if name != INPUT else "input"
                nodes.append(Node(name, kind, is_clean, shape))
        return nodes

    def _layout(self, node: fx.Node) -> Layout | None:
        if self._example is None or self._example.ndim != 4:
            return None
        height, width = self._example.shape[2:]
        return find_layout(self._shapes[node], self.model, (height, width))


def _boundary(flow: Flow, node: fx.Node, layout: Layout | None = None) -> Boundary:
    users = flow.after(node)
    before = dict.fromkeys([flow.labels[user] for user in users[:1] if user is not flow.sink] + flow.begins[node])
    takers = [str(user.target) for user in users if user.op == "call_module"]
    after = dict.fromkeys([flow.labels[node], *flow.ends[node]])
    return Boundary(tuple(before), tuple(after), tuple(takers) if len(takers) == len(users) else (), layout)

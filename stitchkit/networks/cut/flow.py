"""The flow of tensors in a model's graph, where it can be cut, and otherwise why not, and where next."""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Literal

from torch import fx

from stitchkit.errors import InputError, unknown
from stitchkit.networks.cut.sized import has_batch_first, is_of_images
from stitchkit.networks.cut.trace import Trace
from stitchkit.networks.cut.tracer import INPUT, paths_to

_Side = Literal["before", "after"]


class Flow:
    """The nodes of a trace between the model's input and its output.

    Nodes that do not depend on the input, such as parameters, may cross any cut: each slice has its own. So has it the
    number of images.
    """

    def __init__(self, trace: Trace):
        self.trace = trace
        self.labels = trace.labels
        every = list(trace.graph.nodes)
        self.source, self.sink = every[0], every[-1]
        self.result = self.sink.args[0]
        # Dead ends are left out too: a tensor that the output does not need cannot prevent a cut.
        needed = self.between({self.source}, [self.sink]) & {self.source, *self.later(self.source)}
        self.nodes = [node for node in every if node in needed]
        self.place = {node: place for place, node in enumerate(self.nodes)}

    def __contains__(self, node: fx.Node) -> bool:
        return node in self.place

    def before(self, node: fx.Node) -> list[fx.Node]:
        """The nodes whose values a node uses."""
        return [argument for argument in node.all_input_nodes if argument in self]

    def after(self, node: fx.Node) -> list[fx.Node]:
        """The nodes that use the value of a node."""
        return [user for user in node.users if user in self]

    @staticmethod
    def between(starts: Iterable[fx.Node], ends: Iterable[fx.Node]) -> set[fx.Node]:
        """All nodes that the ends need, given the starts; includes both."""
        known, needed, left = set(starts), set[fx.Node](), list(ends)
        while left:
            node = left.pop()
            if node not in needed:
                needed.add(node)
                left += [] if node in known or is_of_images(node) else node.all_input_nodes
        return needed

    @staticmethod
    def later(start: fx.Node) -> set[fx.Node]:
        """All nodes that depend on a node."""
        dependent, left = set[fx.Node](), [start]
        while left:
            for user in left.pop().users:
                if user not in dependent and not is_of_images(user):
                    dependent.add(user)
                    left.append(user)
        return dependent

    @cached_property
    def regions(self) -> dict[str, list[fx.Node]]:
        """The nodes of every function and module, by name, in the order they run."""
        regions: dict[str, list[fx.Node]] = {}
        for node in self.nodes[:-1]:
            for path in paths_to(self.labels[node]):
                regions.setdefault(path, []).append(node)
        return regions

    def entering(self, name: str) -> list[fx.Node]:
        """The tensors that a module or function takes from earlier nodes."""
        region = self.regions[name]
        if region == [self.source]:  # the input itself; nothing runs before it
            return region
        inside = set(region)
        return _tensors(argument for node in region for argument in self.before(node) if argument not in inside)

    def leaving(self, name: str) -> list[fx.Node]:
        """The tensors of a module or function that later nodes use; of a tuple, the items that are used."""
        region = self.regions[name]
        inside = set(region)
        left = [node for node in region if any(user not in inside for user in self.after(node))]
        return _tensors(value for node in left for value in (self.after(node) if is_tuple(node) else [node]))

    def crossing(self, node: fx.Node) -> list[fx.Node]:
        """The tensors that nodes after a node need of it and of those before it; of its tuple, the items."""
        index = self.place[node]
        left = [
            other for other in self.nodes[: index + 1] if any(self.place[user] > index for user in self.after(other))
        ]
        return _tensors(value for other in left for value in (self.after(other) if is_tuple(other) else [other]))

    @cached_property
    def begins(self) -> dict[fx.Node, list[str]]:
        """The modules and functions that take only one tensor, by that tensor, the smallest first."""
        return self._names_by(self.entering)

    @cached_property
    def ends(self) -> dict[fx.Node, list[str]]:
        """The modules and functions that return only one tensor, by that tensor, the smallest first."""
        return self._names_by(self.leaving)

    def _names_by(self, passing: Callable[[str], list[fx.Node]]) -> dict[fx.Node, list[str]]:
        names = defaultdict[fx.Node, list[str]](list)
        for name in sorted(self.regions, key=lambda name: -name.count(".")):
            if len(tensors := passing(name)) == 1:
                names[tensors[0]].append(name)
        return names

    @cached_property
    def clean(self) -> set[fx.Node]:
        """The tensors that alone determine the rest of the model."""
        # A tensor is clean if nothing that runs before it is used after it: one scan with the farthest use is enough.
        clean, reach = set(), 0
        for index, node in enumerate(self.nodes[:-1]):
            if reach <= index and not is_size(node) and not is_tuple(node) and has_batch_first(node):
                clean.add(node)
            reach = max([reach, *(self.place[user] for user in self.after(node))])
        return clean

    def name(self, node: fx.Node) -> str:
        """The name for a node's value: the largest module that ends with it, or the node."""
        if node is self.source:
            return INPUT
        label = self.labels[node]
        return next(name for name in paths_to(label) if self.leaving(name)[-1:] == [node] or name == label)

    def is_changed(self, node: fx.Node) -> bool:
        """Whether a layer changes a node's value in place."""
        return any(
            getattr(self.trace.root.get_submodule(str(user.target)), "inplace", False)
            if user.op == "call_module"
            else user.kwargs.get("inplace") or (user.op == "call_method" and str(user.target).endswith("_"))
            for user in node.users
        )


def _tensors(nodes: Iterable[fx.Node]) -> list[fx.Node]:
    """The nodes without repetitions and sizes, which are not data."""
    return [node for node in dict.fromkeys(nodes) if not is_size(node)]


def is_size(node: fx.Node) -> bool:
    """Whether a node's value is a size, or computed only from sizes."""
    if node.op == "call_method":
        return node.target in ("size", "dim", "numel")
    if node.op != "call_function":
        return False
    if node.target is getattr:
        return node.args[1] in ("shape", "ndim", "dtype", "device", "is_cuda")
    values = node.all_input_nodes
    arithmetic = getattr(node.target, "__module__", "") in (operator.getitem.__module__, "math")
    return arithmetic and bool(values) and all(map(is_size, values))


def is_tuple(node: fx.Node) -> bool:
    """Whether a node's value is a tuple, as shown by an item that is taken out of it."""
    return any(user.target is operator.getitem and isinstance(user.args[1], int) for user in node.users)


def place_before(flow: Flow, name: str) -> fx.Node:
    """The tensor that enters a module or function."""
    tensor = _tensor(flow, name, "before", f"'{name}' takes no tensor that depends on the model's input; begin at")
    if is_tuple(tensor):
        giver = flow.name(tensor)
        raise InputError(f"'{name}' takes several values from '{giver}'; begin at another node")
    return tensor


def place_after(flow: Flow, name: str) -> fx.Node:
    """The tensor that leaves a module or function."""
    return _tensor(flow, name, "after", f"'{name}' returns a size, not a tensor; end at")


def check_slice(flow: Flow, name: str, start: fx.Node, stops: Mapping[str, fx.Node], *, alone: bool = False) -> None:
    """Check that the slice from the named node to the tensors that leave it needs nothing but `start`.

    If it must stand `alone`, the rest of the network may depend on nothing in it but the one tensor that leaves.
    """
    earlier = flow.between((), [start])
    for output, stop in stops.items():
        if stop in earlier:
            raise InputError(
                f"block_output '{output}' ends before block_input '{name}' begins; name them in the order they run"
            )
        if start not in flow.between({start}, [stop]):
            raise InputError(f"block_output '{output}' does not depend on block_input '{name}'; choose one that does")
    needed = flow.between({start}, stops.values() or [flow.sink])
    # Parameters are needed too, but do not depend on the start: every slice has its own, so they may cross a cut.
    inside = needed & flow.later(start)
    crossing = [
        node for node in flow.nodes if node is not start and node not in inside and inside.intersection(node.users)
    ]
    if crossing:
        raise _crossed(flow, name, "before", [start, *crossing])
    if alone:
        [(output, stop)] = stops.items()
        # A single module may be taken whatever passes by it: naming it twice asks for the module, not for a cut.
        passed = {start, stop} if output == name else {stop}
        held = [node for node in flow.nodes if node in needed and node not in passed]
        crossing = [node for node in held if any(user not in needed for user in flow.after(node))]
        if crossing:
            raise _crossed(flow, output, "after", [*crossing, stop])


def passes_several(flow: Flow, name: str) -> InputError:
    """The error for a network whose blocks take more tensors than the output of the block before."""
    kind = type(flow.trace.root.get_submodule(name)).__name__
    tensors = _quoted(flow, flow.crossing(flow.regions[name][-1]))
    return InputError(
        f"its blocks pass more than one tensor: after '{name}', a {kind}, the rest needs {tensors}; choose a network "
        "whose blocks pass one"
    )


def _quoted(flow: Flow, tensors: Iterable[fx.Node]) -> str:
    return " and ".join(f"'{flow.name(node)}'" for node in dict.fromkeys(tensors))


def _tensor(flow: Flow, name: str, side: _Side, nothing: str) -> fx.Node:
    """The one tensor that enters or leaves a node."""
    if name not in flow.regions:
        modules = {path: type(module).__name__ for path, module in flow.trace.root.named_modules() if path}
        if name in modules:
            raise InputError(f"the model's output does not depend on '{name}', a {modules[name]}; name another node")
        raise unknown("node", name, [INPUT, *flow.regions, *modules])
    tensors = _passing(flow, name, side)
    if not tensors:
        raise InputError(f"{nothing} another node")
    if len(tensors) > 1:
        raise _crossed(flow, name, side, tensors)
    return tensors[0]


def _passing(flow: Flow, name: str, side: _Side) -> list[fx.Node]:
    return flow.entering(name) if side == "before" else flow.leaving(name)


def _crossed(flow: Flow, name: str, side: _Side, tensors: Iterable[fx.Node]) -> InputError:
    names = _quoted(flow, tensors)
    listed = "; or give a list, to get tensors from inside a skip connection" if side == "after" else ""
    return InputError(
        f"a cut {side} '{name}' goes through a connection: {names} cross it; {_nearest(flow, name, side)}{listed}"
    )


def _nearest(flow: Flow, name: str, side: _Side) -> str:
    """The clean places around a node."""
    index = flow.place[flow.regions[name][0 if side == "before" else -1]]
    places: dict[int, str] = {}
    for other in flow.regions:
        tensors = _passing(flow, other, side)
        # Outer modules come first in `regions`, so the first name of a place is its largest module.
        if other != INPUT and len(tensors) == 1 and tensors[0] in flow.clean:
            places.setdefault(flow.place[tensors[0]], other)
    nearest = [*sorted(clean for clean in places if clean < index)[-1:], *sorted(p for p in places if p > index)[:1]]
    quoted = " and ".join(f"'{places[clean]}'" for clean in nearest)
    return f"clean places are {side} {quoted}" if nearest else "the model has no clean place"

"""The flow of tensors in a model's graph: those that enter, leave and bypass a place."""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import cached_property

from torch import fx

from stitchkit.networks.cut.sized import has_batch_first, is_of_images
from stitchkit.networks.cut.trace import Trace
from stitchkit.networks.cut.tracer import INPUT, paths_to


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

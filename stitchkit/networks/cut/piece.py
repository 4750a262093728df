"""Pieces of a model: what lies between two of its nodes, as a module that stands alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import fx, nn
from torch.fx.node import map_arg

from stitchkit.errors import InputError
from stitchkit.networks.cut.flow import Flow
from stitchkit.networks.cut.refusal import check_piece, find_start, find_stop
from stitchkit.networks.cut.trace import INPUT, Trace, trace


def cut(
    model: nn.Module, *, block_input: str | None = None, block_output: str | Sequence[str] | None = None
) -> CutPiece:
    """The piece of a model from where one node begins to where another ends.

    A node is a module, by its path, all of it; or a function, by the path of the module in which it runs and its own
    name: `layer3.0.add`. A second call of either has `_1` behind its name. `x` is the model's input. The piece takes
    the tensor that enters `block_input` and gives the one that leaves `block_output`.

    Args:
        model: Any module that takes one tensor and that torch.fx can trace as far as the names ask.
        block_input: Where the piece begins; the model's input by default.
        block_output: Where it ends; the model's output by default. Given a list, the piece returns a tuple, and what
            is in it may lie inside a skip connection.

    Raises:
        InputError: If a node does not exist, the output does not depend on the input, more than one tensor crosses
            the cut, or the model cannot be traced.
    """
    first = INPUT if block_input is None else block_input
    outputs = [block_output] if isinstance(block_output, str) else list(block_output or ())
    if block_output is not None and not outputs:
        raise InputError("block_output is an empty list; name at least one node, or leave it out")
    parts = []
    for training in (False, True):
        traced = trace(model, [first, *outputs], training=training)
        try:
            parts.append(_part_between(traced, model, first, block_output))
        except InputError as error:
            if training:
                raise InputError(f"in training mode, {error}") from error
            raise
    return CutPiece(model, *parts)


def steps(model: nn.Module) -> list[nn.Module]:
    """As many pieces as a model falls into between its blocks: run one after the other they are the model.

    No step changes the tensor that the step before it gave.

    Args:
        model: Any module that takes one tensor and that torch.fx can trace between its blocks.

    Raises:
        InputError: If it cannot be traced.
    """
    flows = [Flow(trace(model, training=training)) for training in (False, True)]
    joints = [_joints(flow, model) for flow in flows]
    common = [label for label in joints[0] if label in joints[1]]
    parts = []
    for flow, joint in zip(flows, joints, strict=True):
        ends = [*(joint[label] for label in common[1:]), flow.result]
        parts.append([_part(flow, model, joint[label], end) for label, end in zip(common, ends, strict=True)])
    return [CutPiece(model, *both) for both in zip(*parts, strict=True)]


def _joints(flow: Flow, model: nn.Module) -> dict[str, fx.Node]:
    """Clean places, by name; not those before a layer that works in place."""
    return {flow.labels[node]: node for node in flow.nodes if node in flow.clean and not _is_changed(node, model)}


def _is_changed(node: fx.Node, model: nn.Module) -> bool:
    """Whether a layer that takes what a node gives works in place."""

    def changes(user: fx.Node) -> bool:
        if user.op == "call_module":
            return getattr(model.get_submodule(str(user.target)), "inplace", False)
        return bool(user.kwargs.get("inplace")) or (user.op == "call_method" and str(user.target).endswith("_"))

    return any(map(changes, node.users))


@dataclass(frozen=True)
class PieceGraph:
    """What a piece runs in one mode.

    Args:
        graph: The graph, from its only input on.
        constants: Tensors that it uses and that are no attributes of the model, by name.
    """

    graph: fx.Graph
    constants: Mapping[str, Any]


def _part_between(traced: Trace, model: nn.Module, first: str, last: str | Sequence[str] | None) -> PieceGraph:
    """The part between two named nodes, if there is one."""
    flow = Flow(traced)
    start = find_start(flow, model, first)
    if last is None:
        check_piece(flow, first, start, {})
        return _part(flow, model, start, flow.result)
    if isinstance(last, str):
        stop = find_stop(flow, model, last)
        check_piece(flow, first, start, {last: stop}, alone=True)
        return _part(flow, model, start, stop)
    stops = {name: find_stop(flow, model, name) for name in last}
    check_piece(flow, first, start, stops)
    listed = sorted(set(stops.values()), key=flow.place.__getitem__)
    return _part(flow, model, start, tuple(stops[name] for name in last), listed)


def _part(flow: Flow, model: nn.Module, start: fx.Node, result: Any, listed: Sequence[fx.Node] = ()) -> PieceGraph:
    """The part that makes a result of nodes, given the first of them; listed ones, in order, as they are there."""
    ends: list[fx.Node] = []
    map_arg(result, ends.append)
    needed = flow.between({start}, ends)
    graph, constants = fx.Graph(), {}
    entered = graph.placeholder(INPUT)
    # A piece does not change what it is given, as the whole model changes nothing of its images.
    copies = {start: graph.call_function(snapshot, (entered,)) if _is_changed(start, model) else entered}
    given: dict[fx.Node, fx.Node] = {}
    for node in flow.trace.graph.nodes:
        if node not in needed or node is start:
            continue
        copies[node] = copy = graph.node_copy(node, copies.__getitem__)
        if node in listed[:-1]:  # what runs later may work in place
            given[node] = graph.call_function(snapshot, (copy,))
        if node.op == "get_attr" and not _has(model, str(node.target)):
            copy.target = f"{node.target}_{'training' if flow.trace.training else 'evaluation'}"
            constants[copy.target] = attrgetter(str(node.target))(flow.trace.root)
    graph.output(map_arg(result, (copies | given).__getitem__))
    return PieceGraph(graph, constants)


def snapshot(value: Any) -> Any:
    """A value that no later layer changes in place: tensors are copied, with their gradients, in lists and tuples too.

    Args:
        value: What a module gave.
    """
    if isinstance(value, list | tuple):
        return [snapshot(item) for item in value] if isinstance(value, list) else tuple(map(snapshot, value))
    return value.clone() if hasattr(value, "clone") else value


def _has(model: nn.Module, path: str) -> bool:
    try:
        attrgetter(path)(model)
    except AttributeError:
        return False
    return True


class CutPiece(nn.Module):
    """A part of a model that stands alone.

    Modules, parameters and buffers are the model's own, under their own names; what the part does not need is left
    out. Modes are shared too: `eval()` on a piece is `eval()` on the modules that it has of the model. But what
    follows the mode outside of modules follows the piece's own mode: set it on the piece, not on the model. Move the
    model to its device before it is cut, or all pieces after.

    Args:
        model: The model that gives the modules.
        evaluation: What runs in evaluation mode.
        training: What runs in training mode.
    """

    def __init__(self, model: nn.Module, evaluation: PieceGraph, training: PieceGraph):
        super().__init__()
        stored = set(model.state_dict(keep_vars=True))
        nodes = [node for part in (evaluation, training) for node in part.graph.nodes]
        whole = {str(node.target) for node in nodes if node.op == "call_module"}
        constants = {**evaluation.constants, **training.constants}
        for target in dict.fromkeys(str(node.target) for node in nodes if node.op in ("call_module", "get_attr")):
            parts = target.split(".")
            if not any(".".join(parts[:end]) in whole for end in range(1, len(parts))):
                value = constants[target] if target in constants else attrgetter(target)(model)
                self._place(parts, value, persistent=target in stored)
        self._run = [_compile(part.graph) for part in (evaluation, training)]
        self.training = model.training

    def forward(self, x: torch.Tensor) -> Any:
        """What the model makes of the tensor that enters the piece: a tensor, or what the model itself returns."""
        return self._run[self.training](self, x)

    def _place(self, path: Sequence[str], value: Any, *, persistent: bool) -> None:
        """Give a module or tensor of the model its place here."""
        owner: nn.Module = self
        for name in path[:-1]:
            if name not in owner._modules:
                owner.add_module(name, nn.Module())
            owner = owner.get_submodule(name)
        if isinstance(value, torch.Tensor) and not isinstance(value, nn.Parameter):
            owner.register_buffer(path[-1], value, persistent=persistent)
        else:
            setattr(owner, path[-1], value)


def _compile(graph: fx.Graph) -> Callable[[nn.Module, torch.Tensor], Any]:
    """A graph as a function of the module that holds what it calls, and of its input."""
    code = graph.python_code("self")
    names: dict[str, Any] = dict(code.globals)
    exec(code.src, names)  # how torch.fx runs its graphs too
    return names["forward"]  # type: ignore[no-any-return]

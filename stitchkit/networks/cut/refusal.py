"""Why a model cannot be cut at a place, and where it can be."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from torch import fx, nn

from stitchkit.errors import InputError, unknown
from stitchkit.networks.cut.flow import Flow, is_tuple
from stitchkit.networks.steps import INPUT


def find_start(flow: Flow, model: nn.Module, name: str) -> fx.Node:
    """The tensor that enters a module or function.

    Raises:
        InputError: If there is no such node, or not exactly one tensor enters it.
    """
    _check_name(flow, model, name)
    entering = flow.entering(name)
    if not entering:
        raise InputError(f"'{name}' takes no tensor that depends on the model's input; begin at another node")
    if len(entering) > 1:
        raise _crossed(flow, name, "before", entering)
    if is_tuple(entering[0]):
        raise InputError(
            f"'{name}' takes several values at once from '{flow.name(entering[0])}'; begin at another node"
        )
    return entering[0]


def find_stop(flow: Flow, model: nn.Module, name: str) -> fx.Node:
    """The tensor that leaves a module or function.

    Raises:
        InputError: If there is no such node, or not exactly one tensor leaves it.
    """
    _check_name(flow, model, name)
    leaving = flow.leaving(name)
    if not leaving:
        raise InputError(f"'{name}' gives a size, not a tensor; end at another node")
    if len(leaving) > 1:
        raise _crossed(flow, name, "after", leaving)
    return leaving[0]


def check_slice(flow: Flow, name: str, start: fx.Node, stops: Mapping[str, fx.Node], *, alone: bool = False) -> None:
    """See that a slice stands alone.

    Args:
        flow: The model.
        name: Name of the node where it begins.
        start: The tensor that enters it.
        stops: The tensors that leave it, by name; none for the model's output.
        alone: The rest of the model is to depend on the tensor that leaves it, and on nothing else in the slice.

    Raises:
        InputError: If it does not.
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
    inside = needed & flow.later(start)
    crossing = [
        node for node in flow.nodes if node is not start and node not in inside and inside.intersection(node.users)
    ]
    if crossing:
        raise _crossed(flow, name, "before", [start, *crossing])
    if alone:
        [(output, stop)] = stops.items()
        passed = {start, stop} if output == name else {stop}  # one module stands alone, whatever passes by it
        held = [node for node in flow.nodes if node in needed and node not in passed]
        crossing = [node for node in held if any(user not in needed for user in flow.after(node))]
        if crossing:
            raise _crossed(flow, output, "after", [*crossing, stop])


def _check_name(flow: Flow, model: nn.Module, name: str) -> None:
    if name in flow.regions:
        return
    modules = [path for path, _ in model.named_modules() if path]
    if name in modules:
        raise InputError(f"the model's output does not depend on '{name}', a {_kind(model, name)}; name another node")
    raise unknown("node", name, [INPUT, *flow.regions, *modules])


def _kind(model: nn.Module, path: str) -> str:
    return type(model.get_submodule(path)).__name__


def _crossed(flow: Flow, name: str, side: str, tensors: Iterable[fx.Node]) -> InputError:
    names = " and ".join(f"'{flow.name(node)}'" for node in dict.fromkeys(tensors))
    listed = "; or give a list, to have tensors from inside a skip connection" if side == "after" else ""
    return InputError(
        f"a cut {side} '{name}' goes through a connection: {names} cross it; {_nearest(flow, name, side)}{listed}"
    )


def _nearest(flow: Flow, name: str, side: str) -> str:
    """The clean places around a node."""
    passing: Callable[[str], list[fx.Node]] = flow.entering if side == "before" else flow.leaving
    here = flow.place[flow.regions[name][0 if side == "before" else -1]]
    places: dict[int, str] = {}
    for other in flow.regions:
        tensors = passing(other)
        if other != INPUT and len(tensors) == 1 and tensors[0] in flow.clean:
            places.setdefault(flow.place[tensors[0]], other)
    nearest = [*sorted(place for place in places if place < here)[-1:], *sorted(p for p in places if p > here)[:1]]
    quoted = " and ".join(f"'{places[place]}'" for place in nearest)
    return f"clean places are {side} {quoted}" if nearest else "the model has no clean place"

"""The tensors at named places of a network, or the reasons why it cannot be cut there and the places where it can."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from torch import fx

from stitchkit.errors import InputError, unknown
from stitchkit.networks.cut.flow import Flow, is_tuple
from stitchkit.networks.cut.tracer import INPUT

_Side = Literal["before", "after"]


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

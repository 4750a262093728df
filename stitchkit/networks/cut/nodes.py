"""The nodes of a model: where it can be cut, and what passes there."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
import torchvision
from torch import fx, nn

from stitchkit.display import aligned
from stitchkit.errors import InputError, unknown
from stitchkit.networks.create import create_model
from stitchkit.networks.cut.flow import Flow
from stitchkit.networks.cut.trace import INPUT, is_layer, trace

BACKENDS = {"timm": "timm", "torchvision": "torchvision", "pytorch": "torchvision"}
"""What a backend may be called, and the library that it is."""


@dataclass(frozen=True)
class Node:
    """A module or function of a model, as `cut` names it.

    Args:
        name: Its name.
        kind: The module's class, or the function's name.
        is_clean: Whether one tensor alone passes from it to the rest of the model: whether a piece may end with it and
            the next begin there.
        shape: Shape of the tensor that leaves it; None without an example, or where it is not one tensor.
    """

    name: str
    kind: str
    is_clean: bool
    shape: tuple[int, ...] | None = None


def nodes(model: nn.Module, example: torch.Tensor | None = None, *, inside: Collection[str] = ()) -> list[Node]:
    """The nodes of a model in the order they begin: its blocks, and what runs between them.

    Args:
        model: Any module that takes one tensor.
        example: An input, to know the shapes; on the meta device if the model is there, so that nothing is computed.
        inside: Paths of modules whose inner nodes are listed too.

    Raises:
        InputError: If there is no such module, or it or the model cannot be traced.
    """
    modules = {path: module for path, module in model.named_modules() if path}
    for path in inside:
        if path not in modules:
            raise unknown("module", path, modules)
        if is_layer(modules[path]):
            kind = type(modules[path]).__name__
            raise InputError(f"'{path}' is one layer, a {kind}, with no nodes inside; name a block")
    traced = trace(model, [f"{path}.{INPUT}" for path in inside])
    flow = Flow(traced)
    shapes = {} if example is None else traced.shapes(example)
    found = []
    for name, region in flow.regions.items():
        leaving = flow.leaving(name)
        shape = shapes.get(leaving[0]) if len(leaving) == 1 else None
        is_clean = len(leaving) == 1 and leaving[0] in flow.clean and (example is None or shape is not None)
        if leaving:
            found.append(Node(name, _kind(model, name, region), is_clean, shape))
    return found


def library_of(backend: str) -> str:
    """The library that a backend is.

    Raises:
        InputError: If there is no such backend.
    """
    if backend not in BACKENDS:
        raise unknown("backend", backend, BACKENDS)
    return BACKENDS[backend]


def check_torchvision_name(name: str) -> None:
    """See that torchvision has a classifier of a name; its models for other tasks are not let in.

    Raises:
        InputError: If it has none.
    """
    names = torchvision.models.list_models(torchvision.models)
    if name not in names:
        raise unknown("torchvision model", name, names)


def library_model(name: str, backend: str = "timm") -> tuple[nn.Module, torch.Tensor]:
    """A model of a library without weights, on the meta device, and an image that it takes.

    Args:
        name: Its name in the library.
        backend: One of `BACKENDS`.

    Raises:
        InputError: If there is no such backend, or the library has no such model.
    """
    if library_of(backend) == "timm":
        with torch.device("meta"):
            model = create_model(name)
        return model.eval(), torch.empty(1, *model.pretrained_cfg["input_size"], device="meta")  # type: ignore[index]
    check_torchvision_name(name)
    model = torchvision.models.get_model(name, weights=None).to("meta")  # some cannot be built there
    return model.eval(), torch.empty(1, 3, 224, 224, device="meta")


def table(listed: Sequence[Node]) -> str:
    """Nodes as lines, for people; a star marks clean places."""
    cells = [
        (f"{'*' if node.is_clean else ' '} {node.name}", node.kind, "x".join(map(str, node.shape or "-")))
        for node in listed
    ]
    return aligned(cells, left={0, 1, 2})


def _kind(model: nn.Module, name: str, region: list[fx.Node]) -> str:
    path = str(region[0].target) if len(region) == 1 and region[0].op == "call_module" else name
    try:
        return type(model.get_submodule(path)).__name__
    except AttributeError:
        return "function" if name != INPUT else "input"

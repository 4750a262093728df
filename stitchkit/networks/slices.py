"""Boundaries between the steps of a network, and slices, which run some of the steps."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

from stitchkit.errors import InputError
from stitchkit.networks.layout import Layout
from stitchkit.networks.mode import evaluating

INPUT = "x"
"""The name of a network's input, whatever its `forward` calls it."""

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Boundary:
    """The end of one step of a network and the beginning of the next.

    Args:
        before: Names of the nodes that begin there, the smallest first: a module's path, or the path of the module in
            which a function runs and the function's name.
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


def extract(module: Module) -> Module:
    """A copy of a module with weights of its own; every module in it keeps its mode."""
    with evaluating(module):  # timm's LeViT caches tensors that cannot be copied until its mode is set
        twin = copy.deepcopy(module)
    for copied, own in zip(twin.modules(), module.modules(), strict=True):
        copied.training = own.training
    return twin

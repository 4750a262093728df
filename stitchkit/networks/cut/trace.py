"""The graph of a model by torch.fx, with names that do not depend on how much of the model was traced."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
import torchvision
from timm.models import get_notrace_functions, get_notrace_modules
from torch import fx, nn
from torch.utils._pytree import tree_leaves

from stitchkit.errors import InputError, one_line

INPUT = "x"
"""The name of a network's input, whatever its `forward` calls it."""


@dataclass(frozen=True)
class Trace:
    """The graph of a model in one mode; a module that was not traced into is one node.

    Args:
        labels: A name for every node but parameters and the output: the path of a module, or the path of the module
            in which a function runs and the function's name. A second call of either ends with `_1`, and so on.
        root: The model with the nodes' targets; it shares its tensors with the one that was traced.
    """

    graph: fx.Graph
    labels: dict[fx.Node, str]
    root: nn.Module
    training: bool

    @torch.no_grad()
    def shapes(self, example: torch.Tensor) -> dict[fx.Node, tuple[int, ...]]:
        """The shape of each tensor, found by running the graph on an example, which may be on the meta device."""
        _Shapes(self.root, graph=self.graph).run(example)
        return {node: node.meta["shape"] for node in self.graph.nodes if "shape" in node.meta}


class _Shapes(fx.Interpreter):
    """Runs a graph and records the shape of every tensor in the `meta` of its node."""

    def run_node(self, n: fx.Node) -> object:
        """Run a node."""
        value: object = super().run_node(n)
        if isinstance(value, torch.Tensor):
            n.meta["shape"] = tuple(value.shape)
        return value


def trace(model: nn.Module, names: Collection[str] = (), *, training: bool = False, deep: bool = False) -> Trace:
    """Trace a model into its blocks, and further only for named nodes.

    Sequences of blocks are traced into. Every other module is one node, unless it contains a named node. Layers of
    torch, and classes derived from them, are always one node.

    Args:
        model: Any module that takes one tensor.
        names: Names of nodes that the graph must show.
        training: Trace the model in training mode rather than in evaluation mode.
        deep: Trace into every module that can be traced.
    """
    asked = {path for name in names for path in paths_to(name)[:-1]}
    whole: set[type[nn.Module]] = set()
    while True:
        root = _twin(model).train(training)
        tracer = _Tracer(root, asked, whole, deep=deep)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                graph = tracer.trace(root)
            tracer.refuse_lost_changes()
            return Trace(graph, tracer.labels, root, training)
        except _Untraceable as error:
            # Trace again with this class whole: each failure adds a class, so the loop ends.
            whole.add(error.args[0])
        except InputError:
            raise
        except Exception as error:
            raise InputError(
                f"{type(model).__name__} cannot be traced between its blocks: {_reason(error)}; cut its blocks, each "
                "as a model of its own"
            ) from error


class _Untraceable(Exception):
    """Modules of this class, the argument, must stay whole."""


class _Tracer(fx.Tracer):
    """Traces into sequences of blocks and `asked` modules, or with `deep` all modules, but never `whole` classes."""

    def __init__(self, root: nn.Module, asked: Collection[str], whole: Collection[type[nn.Module]], *, deep: bool):
        super().__init__((math, torchvision.ops), tuple(get_notrace_functions()), param_shapes_constant=True)  # type: ignore[arg-type] # torch says one module
        self.labels: dict[fx.Node, str] = {}
        self._owners: dict[fx.Node, str] = {}
        self._asked = asked
        self._deep = deep
        self._whole = tuple(whole)
        self._path, self._label = "", ""  # those of the running module
        self._used: set[str] = set()
        self._paths = {path for path, _ in root.named_modules()}
        self._buffers = {id(buffer): name for name, buffer in root.named_buffers()}

    def create_args_for_root(
        self,
        root_fn: Callable[..., object],
        is_module: bool,  # noqa: ARG002
        concrete_args: object = None,  # noqa: ARG002
    ) -> tuple[Callable[..., object], list[object]]:
        """The one input; further arguments keep their defaults."""
        return root_fn, [self.root, self.create_proxy("placeholder", INPUT, (), {})]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module stays whole."""
        if module_qualified_name in self._asked or is_layer(m):
            return is_layer(m)
        return isinstance(m, self._whole) or not (self._deep or is_sequence_of_blocks(m))

    def getattr(self, attr: str, attr_val: object, parameter_proxy_cache: dict[str, fx.Proxy]) -> object:
        """Read buffers, like parameters, when a slice runs, not when it is cut."""
        name = self._buffers.get(id(attr_val))
        if name is None:
            return super().getattr(attr, attr_val, parameter_proxy_cache)
        if name not in parameter_proxy_cache:
            parameter_proxy_cache[name] = self.create_proxy("get_attr", name, (), {})
        return parameter_proxy_cache[name]

    def call_module(
        self, m: nn.Module, forward: Callable[..., object], args: tuple[object, ...], kwargs: dict[str, object]
    ) -> object:
        """Record the module to which new nodes belong."""
        path, before = self.path_of_module(m), (self._path, self._label)
        inside = path.startswith(f"{self._path}.") if self._path else True
        label = self._label + path[len(self._path) :] if inside else path
        self._path, self._label = path, self._fresh(label, {label})
        try:
            return super().call_module(m, forward, args, kwargs)
        except (_Untraceable, InputError):
            raise
        except Exception as error:
            raise self._failure(path, error) from error
        finally:
            self._path, self._label = before

    def _failure(self, path: str, error: Exception) -> Exception:
        if path in self._asked:
            return InputError(f"'{path}' cannot be traced into: {_reason(error)}; cut before or after it")
        return _Untraceable(type(self.root.get_submodule(path)))

    def refuse_lost_changes(self) -> None:
        """Refuse a tensor that is changed in place by a call whose result is unused: a slice would leave it out."""
        for node, path in self._owners.items():
            if not node.users and str(node.target).endswith("_"):
                error = ValueError(f"it changes a tensor in place by {node.target}")
                raise self._failure(path, error) if path else error

    def create_node(self, kind: str, target: fx.node.Target, *args: Any, **kwargs: Any) -> fx.Node:
        """Name a node by its place in the model."""
        node = super().create_node(kind, target, *args, **kwargs)
        if kind == "call_module":
            self.labels[node] = self._label
        elif kind not in ("get_attr", "output"):
            self._owners[node] = self._path
            name = target if isinstance(target, str) else target.__name__
            label = f"{self._label}.{name}" if self._label else name
            self.labels[node] = self._fresh(label)
        return node

    def _fresh(self, label: str, allowed: Collection[str] = ()) -> str:
        """A label, numbered if it is taken: by an earlier node, or, unless allowed, as the path of a module."""
        number, fresh = 0, label
        while fresh in self._used or (fresh in self._paths and fresh not in allowed):
            number += 1
            fresh = f"{label}_{number}"
        self._used.add(fresh)
        return fresh


_CONTAINERS = (nn.Module, nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)


def is_layer(module: nn.Module) -> bool:
    """Whether a module is a layer of torch, of a class derived from one, or a layer that timm keeps whole."""
    bases = (base for base in type(module).__mro__ if base not in _CONTAINERS)
    kept = isinstance(module, tuple(get_notrace_modules()))
    return kept or any(base.__module__.startswith(("torch.nn.", "torch.ao.nn.")) for base in bases)


def is_sequence_of_blocks(module: nn.Module) -> bool:
    """Whether a module is a plain sequence, or holds a list of two or more blocks of one class, as stages do.

    A child that is itself a sequence, such as torchvision's convolution with norm and activation, is not a block.
    """
    return type(module) is nn.Sequential or any(_is_list_of_blocks(child) for child in module.children())


def _is_list_of_blocks(module: nn.Module) -> bool:
    if type(module) not in (nn.Sequential, nn.ModuleList):
        return False
    children = [child for child in module.children() if not isinstance(child, nn.Sequential)]
    blocks = [type(child) for child in children if any(True for _ in child.children())]
    return len(blocks) > len(set(blocks))


def paths_to(name: str) -> list[str]:
    """Paths of the modules around a node, outermost first, and its own name."""
    return list(accumulate(name.split("."), "{}.{}".format))


def _twin(model: nn.Module) -> nn.Module:
    """A copy of the model with the same tensors, without hooks: tracing changes modules that cache what they see."""
    held = (value for module in model.modules() for value in tree_leaves(vars(module)))
    twin = copy.deepcopy(model, {id(value): value for value in held if isinstance(value, torch.Tensor)})
    for module in twin.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    return twin.train()  # clears the cache that timm's LeViT fills in evaluation


def _reason(error: Exception) -> str:
    return one_line(error).partition(". ")[0]  # torch.fx's advice, which follows, is for authors of the model

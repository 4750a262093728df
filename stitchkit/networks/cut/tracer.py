"""The tracer: records the graph of a model by torch.fx, as deep as it is asked to."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from itertools import accumulate
from typing import Any

import torchvision
from timm.models import get_notrace_functions, get_notrace_modules
from torch import fx, nn

from stitchkit.errors import InputError, one_line

INPUT = "x"
"""The name of a network's input, whatever its `forward` calls it."""


class Untraceable(Exception):
    """Modules of this class, the argument, must stay whole."""


class Tracer(fx.Tracer):
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
        self.given: dict[str, fx.Node] = {}
        for name in ("forward_features", "forward_head"):
            if hasattr(root, name):
                setattr(root, name, self._watched(name, getattr(root, name)))

    def _watched(self, name: str, method: Callable[..., object]) -> Callable[..., object]:
        """A method that also records what it gives."""

        def run(*args: object, **kwargs: object) -> object:
            output = method(*args, **kwargs)
            if isinstance(output, fx.Proxy):
                self.given[name] = output.node
            return output

        return run

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
        """Record the module of new nodes."""
        path, before = self.path_of_module(m), (self._path, self._label)
        inside = path.startswith(f"{self._path}.") if self._path else True
        label = self._label + path[len(self._path) :] if inside else path
        self._path, self._label = path, self._fresh(label, {label})
        try:
            return super().call_module(m, forward, args, kwargs)
        except (Untraceable, InputError):
            raise
        except Exception as error:
            raise self.failure(path, error) from error
        finally:
            self._path, self._label = before

    def failure(self, path: str, error: Exception) -> Exception:
        """What to raise if a module cannot be traced."""
        if path in self._asked:
            return InputError(f"'{path}' cannot be traced into: {reason(error)}; cut before or after it")
        return Untraceable(type(self.root.get_submodule(path)))

    def refuse_lost_changes(self) -> None:
        """Refuse a tensor that is changed in place by a call whose result is unused: a slice would skip the call."""
        for node, path in self._owners.items():
            if not node.users and str(node.target).endswith("_"):
                error = ValueError(f"it changes a tensor in place by {node.target}")
                raise self.failure(path, error) if path else error

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
    children = [child for child in module.children() if not isinstance(child, nn.Sequential) or is_group(child)]
    blocks = [type(child) for child in children if any(True for _ in child.children())]
    return len(blocks) > len(set(blocks))


def is_group(module: nn.Module) -> bool:
    """Whether a sequence is one block that consists of several of unlike classes, as DaViT's are of two attentions."""
    kinds = [type(child) for child in module.children() if any(True for _ in child.children())]
    alike = len(kinds) == len(list(module.children()))
    return type(module) is nn.Sequential and alike and 1 < len(kinds) == len(set(kinds))


def is_stage(module: nn.Module) -> bool:
    """Whether a module consists of two or more blocks of one class."""
    kinds = [type(child) for child in module.children() if any(True for _ in child.children())]
    alike = len(set(kinds)) == 1 and len(kinds) == len(list(module.children()))
    return len(kinds) > 1 and alike and not issubclass(kinds[0], nn.Sequential | nn.ModuleList)


def paths_to(name: str) -> list[str]:
    """Paths of the modules around a node, outermost first, and its own name."""
    return list(accumulate(name.split("."), "{}.{}".format))


def reason(error: Exception) -> str:
    """Why a module cannot be traced, in one line."""
    return one_line(error).partition(". ")[0]  # torch.fx's advice, which follows, is for authors of the model

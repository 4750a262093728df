"""The graph of a model by torch.fx, with names that do not depend on how much of the model was traced.

Many networks compute with sizes, ask about them, or hand them to their blocks, and torch.fx alone knows no sizes. With
an example, each operation also runs on fake tensors, which have sizes but no values. Their batch is a prime number, so
that a size that it divides follows the batch, and any other is a constant.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import Parameter, signature
from operator import getitem, mul
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

from stitchkit.errors import InputError
from stitchkit.networks.cut.tracer import (
    Tracer,
    Untraceable,
    is_layer,
    is_sequence_of_blocks,
    is_stage,
    paths_to,
    reason,
)

_BATCH = 10_007
_PLAIN = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class Trace:
    """The graph of a model in one mode; a module that was not traced into is one node.

    Args:
        labels: A name for every node but parameters and the output: the path of a module, or the path of the module
            that runs a function, and the function's name. A second call of either ends with `_1`, and so on.
        root: The model with the nodes' targets; it shares its tensors with the one that was traced.
        given: What timm's `forward_features` and `forward_head` give, if there are these methods and it is one tensor.
    """

    graph: fx.Graph
    labels: dict[fx.Node, str]
    root: nn.Module
    training: bool
    given: Mapping[str, fx.Node]

    @torch.no_grad()
    def shapes(self, example: torch.Tensor) -> dict[fx.Node, tuple[int, ...]]:
        """The shape of each tensor, found by running the graph on an example, which may be on the meta device."""
        interpreter = fx.Interpreter(self.root, graph=self.graph, garbage_collect_values=False)
        interpreter.run(example)
        return {node: tuple(x.shape) for node, x in interpreter.env.items() if isinstance(x, torch.Tensor)}


def trace(
    model: nn.Module,
    names: Collection[str] = (),
    *,
    training: bool = False,
    deep: bool = False,
    example: torch.Tensor | None = None,
) -> Trace:
    """Trace a model into its blocks, and further only for named nodes.

    Sequences of blocks are traced into. Every other module is one node, unless it contains a named node. Layers of
    torch, and classes derived from them, are always one node.

    Args:
        model: Any module that takes one tensor.
        names: Names of nodes that the graph must show.
        training: Trace the model in training mode rather than in evaluation mode.
        deep: Trace into every module that can be traced.
        example: Images whose sizes, but for their number, become constants of the graph. Without them, a model that
            asks for sizes can only be traced around the modules that do.
    """
    optional = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    arguments = [*signature(model.forward).parameters.values()]
    needed = [each.name for each in arguments if each.default is Parameter.empty and each.kind not in optional]
    if len(needed) > 1:
        raise InputError(
            f"{type(model).__name__} takes {' and '.join(needed)}; wrap it in a module that takes one tensor"
        )
    asked = {path for name in names for path in paths_to(name)[:-1]}
    whole: set[type[nn.Module]] = set()
    while True:
        root = _twin(model).train(training)
        tracer = (
            Tracer(root, asked, whole, deep=deep)
            if example is None
            else SizedTracer(root, asked, whole, deep=deep, example=example)
        )
        try:
            with warnings.catch_warnings(), _without_logs():
                warnings.simplefilter("ignore")
                graph = tracer.trace(root)
            tracer.refuse_lost_changes()
            return Trace(graph, tracer.labels, root, training, tracer.given)
        except Untraceable as error:
            # Trace again with this class whole: each failure adds a class, so the loop ends.
            whole.add(error.args[0])
        except InputError:
            raise
        except Exception as error:
            raise InputError(
                f"{type(model).__name__} cannot be traced between its blocks: {reason(error)}; cut its blocks, each "
                "as a model of its own"
            ) from error


@contextmanager
def _without_logs() -> Iterator[None]:
    """Keep torch from logging a traceback of each module that cannot run without values, and so stays whole."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = before


def _twin(model: nn.Module) -> nn.Module:
    """A copy of the model with the same tensors, without hooks: tracing changes modules that cache what they see."""
    held = (value for module in model.modules() for value in tree_leaves(vars(module)))
    twin = copy.deepcopy(model, {id(value): value for value in held if isinstance(value, torch.Tensor)})
    for module in twin.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    return twin.train()  # clears the cache that timm's LeViT fills in evaluation


class SizedTracer(Tracer):
    """Traces with the sizes of an example; its batch does not matter.

    The number of images is read from the network's input wherever it is needed, so it never passes between blocks.
    """

    def __init__(
        self,
        root: nn.Module,
        asked: Collection[str],
        whole: Collection[type[nn.Module]],
        *,
        deep: bool,
        example: torch.Tensor,
    ):
        super().__init__(root, asked, whole, deep=deep)
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        with self._fake:
            self._images = torch.empty_like(example[:1].expand(_BATCH, *example.shape[1:]))
        self._interpreter = fx.Interpreter(root, garbage_collect_values=False, graph=fx.Graph())
        self._found = dict[object, Any]()
        self._is_running = False
        # Also a stage that has only one block of its class.
        self._stages = tuple({type(part) for part in root.modules() if is_sequence_of_blocks(part) or is_stage(part)})

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module stays whole: not if its class is that of a stage."""
        is_inside = not is_layer(m) and not isinstance(m, self._whole) and isinstance(m, self._stages)
        return not is_inside and super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """A tensor that knows its sizes."""
        return _Sized(node, self)

    def create_node(self, kind: str, target: fx.node.Target, *args: Any, **kwargs: Any) -> fx.Node:
        """Record what a node computes."""
        node = super().create_node(kind, target, *args, **kwargs)
        if kind != "output":
            self._is_running = True
            try:
                with self._fake, torch.no_grad():
                    value = self._images if kind == "placeholder" else self._interpreter.run_node(node)
            finally:
                self._is_running = False
            node.meta["value"] = self._interpreter.env[node] = value
        return node

    def call_module(
        self, m: nn.Module, forward: Callable[..., object], args: tuple[object, ...], kwargs: dict[str, object]
    ) -> object:
        """Record a module, unless it runs on fake tensors."""
        return forward(*args, **kwargs) if self._is_running else super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: object, parameter_proxy_cache: dict[str, fx.Proxy]) -> object:
        """Record the use of a parameter or buffer, unless a module runs on fake tensors."""
        return attr_val if self._is_running else super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_proxy(self, kind: str, target: fx.node.Target, *args: Any, **kwargs: Any) -> Any:
        """A tensor; of numbers that do not depend on the batch, the numbers themselves."""
        proxy = super().create_proxy(kind, target, *args, **kwargs)
        # torch.fx needs the node of a function that it was told to keep whole.
        if _is_plain(proxy.node) and id(target) not in self._autowrap_function_ids:
            self.graph.erase_node(proxy.node)
            return proxy.node.meta["value"]
        return proxy

    def failure(self, path: str, error: Exception) -> Exception:
        """What to raise if a module cannot be traced, or cannot run."""
        kind = type(self.root.get_submodule(path))
        if kind in self._whole:
            size = list(self._images.shape[1:])
            return InputError(
                f"it rejects images of {size}, or its control flow depends on pixel values: '{path}', a "
                f"{kind.__name__}, gives {reason(error)}; if the images are at fault, choose a larger img_size, or the "
                "in_chans that it takes"
            )
        return super().failure(path, error)

    def create_arg(self, a: Any) -> fx.node.Argument:
        """An argument of a node."""
        if isinstance(a, _Sized) and _is_plain(a.node):
            return super().create_arg(a.node.meta["value"])
        return super().create_arg(a)

    def size(self, size: int) -> Any:
        """A size: a number, or a multiple of the number of images."""
        if not _follows_batch(size):
            return size
        batch = self._of_images("call_method", "size", 0)
        return mul(batch, size // _BATCH) if size > _BATCH else batch

    def device(self) -> Any:
        """The device of the images, which is that of every tensor."""
        return self._of_images("call_function", getattr, "device")

    def _of_images(self, kind: str, target: fx.node.Target, what: object) -> Any:
        if what not in self._found:
            images = next(iter(self.graph.nodes))
            self._found[what] = super().create_proxy(kind, target, (self.proxy(images), what), {})
            self._found[what].node.meta["is_of_images"] = True
        return self._found[what]


def _is_plain(node: fx.Node) -> bool:
    """Whether a node's value is numbers, or nothing, that do not depend on the batch."""
    leaves = tree_leaves(node.meta.get("value", node))
    return all(isinstance(leaf, _PLAIN) and not _follows_batch(leaf) for leaf in leaves)


def _follows_batch(value: object) -> bool:
    return isinstance(value, int) and value > 0 and value % _BATCH == 0


class _Sized(fx.Proxy):
    """A value in the graph, with its sizes."""

    tracer: SizedTracer

    @property
    def _value(self) -> Any:
        return self.node.meta["value"]

    def size(self, dim: int | None = None) -> Any:
        """One size of a tensor, or all."""
        sizes = tuple(map(self.tracer.size, self._value.shape))
        return sizes if dim is None else sizes[dim]

    @property
    def shape(self) -> tuple[Any, ...]:
        """All sizes of a tensor."""
        sizes: tuple[Any, ...] = self.size()
        return sizes

    @property
    def device(self) -> Any:
        """The device of the images."""
        return self.tracer.device()

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self._value.shape)

    def __len__(self) -> int:
        count = len(self._value)
        return super().__len__() if _follows_batch(count) else count

    def __iter__(self) -> Iterator[Any]:
        return (getitem(self, number) for number in range(len(self)))


def is_of_images(node: fx.Node) -> bool:
    """Whether a node is the number of images or their device, which each step reads from its own input."""
    return "is_of_images" in node.meta


def has_batch_first(node: fx.Node) -> bool:
    """Whether the first axis of a tensor is that of the images, as far as this is known."""
    value = node.meta.get("value")
    return value is None or (isinstance(value, torch.Tensor) and value.shape[:1] == (_BATCH,))


def shapes(graph: fx.Graph) -> dict[fx.Node, tuple[int, ...]]:
    """The shape of each tensor of a sized trace; its batch is not that of any images."""
    values = {node: node.meta.get("value") for node in graph.nodes}
    return {node: tuple(value.shape) for node, value in values.items() if isinstance(value, torch.Tensor)}

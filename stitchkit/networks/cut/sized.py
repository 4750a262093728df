"""Tracing with the sizes of an example: every size is a number, except those that follow the batch.

Many networks compute with sizes, ask about them, or hand them to their blocks. torch.fx alone knows no sizes and can
trace none of these. Here each operation also runs on two batches of fake tensors, which have sizes but no values. A
size that differs between the two follows the batch; any other is a constant.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from operator import attrgetter, getitem, mul
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.node import map_arg
from torch.utils._pytree import tree_leaves

from stitchkit.networks.cut.tracer import Tracer, is_layer, is_sequence_of_blocks, is_stage

_BATCHES = (2, 3)
_PLAIN = (bool, int, float, str, type(None))


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
            self._examples = [torch.empty_like(example[:1].expand(count, *example.shape[1:])) for count in _BATCHES]
        self._batch: Any = None
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
        """Record what a node computes for the two batches."""
        node = super().create_node(kind, target, *args, **kwargs)
        if kind != "output":
            self._is_running = True
            try:
                with self._fake, torch.no_grad():
                    node.meta["values"] = [self._run(node, number) for number in range(len(_BATCHES))]
            finally:
                self._is_running = False
        return node

    def _run(self, node: fx.Node, number: int) -> Any:
        def value(argument: fx.node.Argument) -> Any:
            return map_arg(argument, lambda part: part.meta["values"][number])

        if node.op == "placeholder":
            return self._examples[number]
        if node.op == "get_attr":
            return attrgetter(str(node.target))(self.root)
        arguments, keywords = value(node.args), value(node.kwargs)
        if node.op == "call_module":
            return self.root.get_submodule(str(node.target))(*arguments, **keywords)
        if node.op == "call_method":
            return getattr(arguments[0], str(node.target))(*arguments[1:], **keywords)
        assert callable(node.target)
        return node.target(*arguments, **keywords)

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
        first, second = map(tree_leaves, proxy.node.meta.get("values", [proxy, proxy]))
        if all(isinstance(leaf, _PLAIN) for leaf in first) and first == second:
            self.graph.erase_node(proxy.node)
            return proxy.node.meta["values"][0]
        return proxy

    def size(self, sizes: tuple[int, ...]) -> Any:
        """A size, given those for the two batches: a number, or a multiple of the number of images."""
        factor = sizes[0] // _BATCHES[0]
        if len(set(sizes)) == 1:
            return sizes[0]
        if sizes != tuple(factor * count for count in _BATCHES):
            raise ValueError(f"the sizes {sizes} for {_BATCHES} images are neither equal nor multiples of these")
        if self._batch is None:
            images = next(iter(self.graph.nodes))
            self._batch = super().create_proxy("call_method", "size", (self.proxy(images), 0), {})
            self._batch.node.meta["is_batch"] = True
        return mul(self._batch, factor) if factor > 1 else self._batch


class _Sized(fx.Proxy):
    """A value in the graph, with its sizes."""

    tracer: SizedTracer

    @property
    def _values(self) -> list[Any]:
        values: list[Any] = self.node.meta["values"]
        return values

    def size(self, dim: int | None = None) -> Any:
        """One size of a tensor, or all."""
        sizes = tuple(map(self.tracer.size, zip(*(value.shape for value in self._values), strict=True)))
        return sizes if dim is None else sizes[dim]

    @property
    def shape(self) -> tuple[Any, ...]:
        """All sizes of a tensor."""
        found: tuple[Any, ...] = self.size()
        return found

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self._values[0].shape)

    def __len__(self) -> int:
        first, second = map(len, self._values)
        return first if first == second else super().__len__()

    def __iter__(self) -> Iterator[Any]:
        return (getitem(self, number) for number in range(len(self)))


def is_batch(node: fx.Node) -> bool:
    """Whether a node is the number of images."""
    return "is_batch" in node.meta


def has_batch_first(node: fx.Node) -> bool:
    """Whether the first axis of a tensor is that of the images, as far as this is known."""
    found = zip(node.meta.get("values", ()), _BATCHES, strict=False)
    return all(isinstance(value, torch.Tensor) and value.shape[:1] == (count,) for value, count in found)

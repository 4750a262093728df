"""The memory that activations take."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

_POSITIONS = 1600
"""Tokens or pixels that a block takes at once on a CPU.

With fewer, matrix products are too small to be fast; with more, what a block computes leaves the caches.
"""


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all live tensors that operations inside it create.

    Works on every device; workspaces inside kernels are not counted.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = self._now = 0
        self._known = WeakIdKeyDictionary()

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        result = func(*args, **(kwargs or {}))
        inputs = {
            leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)
        }
        for leaf in tree_leaves(result):
            if not isinstance(leaf, torch.Tensor) or (storage := leaf.untyped_storage()) in self._known:
                continue
            if storage._cdata not in inputs:  # no view of a tensor from outside
                # Python's object of a storage lives as long as its last tensor, views among them, on every device.
                self._known[storage] = True
                self._now += storage.nbytes()
                self.peak = max(self.peak, self._now)
                weakref.finalize(storage, self._forget, storage.nbytes())
        return result

    def _forget(self, size: int) -> None:
        self._now -= size


def in_portions(x: torch.Tensor, positions: int) -> tuple[torch.Tensor, ...]:
    """A batch `[B, ...]` in the parts that run fastest: of so many tokens or pixels on a CPU, whole on a GPU.

    Its images or activations must be independent of each other, as in evaluation mode.

    Args:
        positions: Tokens or pixels of each in the blocks that run.
    """
    if x.device.type != "cpu" or not len(x):
        return (x,)
    return torch.split(x, max(1, round(_POSITIONS / positions)))

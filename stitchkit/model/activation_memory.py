"""The memory that activations take."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

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
        self.peak = 0
        self._now = 0
        self._tensors: Counter[int] = Counter()

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        result = func(*args, **(kwargs or {}))
        inputs = {_storage(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._watch(leaf, is_new=_storage(leaf) not in inputs)
        return result

    def _watch(self, tensor: torch.Tensor, *, is_new: bool) -> None:
        """Count a storage from the first to the end of the last of its tensors; views keep it alive."""
        storage = _storage(tensor)
        if not is_new and not self._tensors[storage]:
            return  # a view of a tensor from outside
        if not self._tensors[storage]:
            self._now += tensor.untyped_storage().nbytes()
            self.peak = max(self.peak, self._now)
        self._tensors[storage] += 1
        # A storage is freed with its last tensor, so Python's reference counts show its life on every device.
        weakref.finalize(tensor, self._forget, storage, tensor.untyped_storage().nbytes())

    def _forget(self, storage: int, size: int) -> None:
        self._tensors[storage] -= 1
        if not self._tensors[storage]:
            self._now -= size


def _storage(tensor: torch.Tensor) -> int:
    key: int = tensor.untyped_storage()._cdata
    return key


def in_portions(x: torch.Tensor, positions: int) -> tuple[torch.Tensor, ...]:
    """A batch `[B, ...]` in the parts that run fastest: of so many tokens or pixels on a CPU, whole on a GPU.

    Its images or activations must be independent of each other, as in evaluation mode.

    Args:
        positions: Tokens or pixels of each in the blocks that run.
    """
    if x.device.type != "cpu" or not len(x):
        return (x,)
    return torch.split(x, max(1, round(_POSITIONS / positions)))

"""Networks on the meta device: their shapes, without weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

_STARTS = frozenset(["uniform_", "normal_", "erfinv_", "mul_", "add_", "clamp_", "fill_", "zero_"])


class _NoStarts(TorchFunctionMode):
    """Skips what initialises parameters that hold no numbers; torch takes most of the time of a network for it."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        if getattr(func, "__name__", "") in _STARTS and args and type(args[0]) is nn.Parameter and args[0].is_meta:
            return args[0]
        return func(*args, **(kwargs or {}))


@contextmanager
def without_weights() -> Iterator[None]:
    """Build networks on the meta device."""
    with torch.device("meta"), _NoStarts():
        yield

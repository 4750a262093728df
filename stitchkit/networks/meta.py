"""Networks without values, for their structure, shapes and costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

_FILLS = frozenset(["add_", "clamp_", "div_", "erfinv_", "fill_", "mul_", "normal_", "sub_", "uniform_", "zero_"])


class _Unfilled(TorchFunctionMode):
    """Leave parameters as they are: without values, torch imitates each step of their initialisation in Python."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        if getattr(func, "__name__", "") in _FILLS and args and isinstance(args[0], nn.Parameter) and args[0].is_meta:
            return args[0]
        return func(*args, **(kwargs or {}))


@contextmanager
def without_values() -> Iterator[None]:
    """Create tensors on the meta device, where they need neither memory nor initialisation."""
    with torch.device("meta"), _Unfilled():
        yield

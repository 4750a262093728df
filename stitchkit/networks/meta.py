"""Networks without values, for their structure, shapes and costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

_FILLS = frozenset({
    *(nn.init.constant_, nn.init.kaiming_uniform_, nn.init.normal_, nn.init.uniform_),
    *(getattr(torch.Tensor, name) for name in ("add_", "clamp_", "copy_", "div_", "erfinv_", "fill_", "mul_")),
    *(getattr(torch.Tensor, name) for name in ("normal_", "sub_", "uniform_", "zero_")),
})  # fmt: skip


class _Unfilled(TorchFunctionMode):
    """Leave parameters as they are: without values, torch imitates each step of their initialisation in Python."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # fmt: skip
        kwargs = kwargs or {}
        if func in _FILLS:
            filled = args[0] if args else kwargs["tensor"]
            if isinstance(filled, nn.Parameter) and filled.is_meta:
                return filled
        return func(*args, **kwargs)


@contextmanager
def without_values() -> Iterator[None]:
    """Create tensors on the meta device, where they need neither memory nor initialisation."""
    with torch.device("meta"), _Unfilled():
        yield

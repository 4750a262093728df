"""Mixed precision: the context of forward passes, and the loss scaler of float16."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from timm.utils import NativeScaler


class LossScaler(NativeScaler):  # type: ignore[misc]
    """timm's loss scaler with backward pass and update apart: in between, ranks exchange their gradients."""

    def scale(self, loss: torch.Tensor) -> torch.Tensor:
        """The loss to run backward from."""
        return self._scaler.scale(loss)  # type: ignore[no-any-return]

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Bring gradients to their own size, for clipping."""
        self._scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Update the parameters where all gradients are finite, then the scale."""
        self._scaler.step(optimizer)
        self._scaler.update()


Autocast = Callable[[], AbstractContextManager[Any]]


def create_precision(device: torch.device, *, amp: bool, amp_dtype: str) -> tuple[Autocast, LossScaler | None]:
    """The context that forward passes run in, and the loss scaler where float16 needs one.

    Args:
        device: Where the passes run; a CPU uses bfloat16.
        amp: Whether precision is mixed at all.
        amp_dtype: `float16` or `bfloat16`.
    """
    if not amp:
        return nullcontext, None
    dtype = torch.bfloat16 if device.type == "cpu" else getattr(torch, amp_dtype)
    scaler = LossScaler(device=device.type) if dtype == torch.float16 else None
    return partial(torch.autocast, device_type=device.type, dtype=dtype), scaler

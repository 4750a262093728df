"""Mixed precision: the context of forward passes, and the loss scaler of float16."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch.amp import GradScaler

Autocast = Callable[[], AbstractContextManager[object]]

SCALER = "amp_scaler"
"""Key of the loss scaler in checkpoints, as timm has it."""


def create_precision(device: torch.device, *, amp: bool, amp_dtype: str) -> tuple[Autocast, GradScaler | None]:
    """The context that forward passes run in, and the loss scaler if float16 needs one."""
    if not amp:
        return nullcontext, None
    # Many CPU kernels lack float16; bfloat16 has the range of float32, so it needs no scaler.
    dtype = torch.bfloat16 if device.type == "cpu" else getattr(torch, amp_dtype)
    scaler = GradScaler(device.type) if dtype == torch.float16 else None
    return partial(torch.autocast, device_type=device.type, dtype=dtype), scaler

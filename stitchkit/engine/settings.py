"""Settings of the engine, whatever its steps compute, and the precision that follows from them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.amp import GradScaler

from stitchkit.networks.mode import unfuse_attention

_logger = logging.getLogger(__name__)

_PAYS_FROM = 64
"""How wide the widest matrix product must be for bfloat16 to be proposed.

At 64, small ViTs are 1.4 times as fast or more on a CPU with avx512_bf16, at 24 hardly or not: benchmarks/README.md.
"""
Autocast = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """Training settings of a task, under timm's names.

    Args:
        seed: Each rank and epoch has its own stream of numbers from it.
        batch_size: Images per batch and rank.
        checkpoint_interval: Steps between checkpoints within an epoch; with 0, only on a signal.
        grad_accum_steps: Batches per step, whose gradients add up; the last step of an epoch may have fewer.
        clip_mode: `norm`, `value` or `agc`.
        amp_dtype: `float16` or `bfloat16`; CPUs always use bfloat16.
        dist_bn: Batch-norm statistics after an epoch: `reduce` (mean over ranks), `broadcast` (those of the first
            rank) or empty (each rank keeps its own).
        save_images: Save a batch as a picture at each log line.
        mixup_off_epoch: First epoch without mixed batches; 0: never.
        max_steps: Training ends after this many steps, even within an epoch.
    """

    seed: int
    batch_size: int
    log_interval: int = 50
    checkpoint_interval: int = 0
    grad_accum_steps: int = 1
    clip_grad: float | None = None
    clip_mode: str = "norm"
    amp: bool = False
    amp_dtype: str = "float16"
    model_ema: bool = False
    model_ema_decay: float = 0.9998
    model_ema_warmup: bool = False
    model_ema_force_cpu: bool = False
    dist_bn: str = ""
    channels_last: bool = False
    synchronize_step: bool = False
    save_images: bool = False
    mixup_off_epoch: int = 0
    max_steps: int | None = None

    @classmethod
    def pick(cls, settings: Mapping[str, Any], **own: Any) -> EngineSettings:
        """The `settings` whose names the engine shares, with `own` taking precedence."""
        names = {field.name for field in fields(cls)}
        return cls(**{key: value for key, value in settings.items() if key in names} | own)

    def precision(self, device: torch.device) -> tuple[Autocast, GradScaler | None]:
        """The context that forward passes run in, and the loss scaler if float16 needs one."""
        if not self.amp:
            return nullcontext, None
        # Many CPU kernels lack float16; bfloat16 has the range of float32, so it needs no scaler.
        dtype = torch.bfloat16 if device.type == "cpu" else getattr(torch, self.amp_dtype)
        scaler = GradScaler(device.type) if dtype == torch.float16 else None
        return partial(torch.autocast, device_type=device.type, dtype=dtype), scaler


def _width(network: nn.Module) -> int:
    """The width of the widest matrix product: the smaller side of a weight seen as a matrix, `[out, in]`."""
    shapes = (parameter.shape for parameter in network.parameters())
    return max((min(shape[0], shape[1:].numel()) for shape in shapes if len(shape) >= 2), default=0)


def suit_precision(network: nn.Module, device: torch.device, *, amp: bool, how: str) -> None:
    """Prepare a network on a CPU for bfloat16, or else log once how to compute in it if that is faster.

    Args:
        network: On its device, with its weights in their precision.
        amp: Whether it runs in mixed precision, which is bfloat16 on a CPU.
        how: The setting that turns mixed precision on.
    """
    if device.type != "cpu":
        return
    if amp or any(parameter.dtype == torch.bfloat16 for parameter in network.parameters()):
        # torch's fused attention needs matrix tiles to be fast in bfloat16. Without, it is no faster than in float32,
        # takes a quarter of an evaluation and a third of a training step: benchmarks/README.md.
        if not torch.cpu._is_amx_tile_supported():
            unfuse_attention(network)
    elif (
        # torch.cpu.get_capabilities says the same in public, but the oldest torch that we allow, 2.8, lacks it.
        (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()) and _width(network) >= _PAYS_FROM
    ):
        _logger.info(
            "this CPU multiplies matrices in bfloat16 much faster than in float32: %s uses that, and changes "
            "accuracies by rounding; benchmarks/README.md has the figures", how,
        )  # fmt: skip

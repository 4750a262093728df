"""Settings of the engine: how steps are taken and saved, whatever they compute."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """How a task is trained.

    Args:
        seed: Of everything random; each rank and epoch has its own stream.
        batch_size: Images of a batch on each rank.
        log_interval: Steps between log lines.
        checkpoint_interval: Steps between checkpoints within an epoch; 0 saves none but for a signal.
        grad_accum_steps: Batches whose gradients make one step.
        clip_grad: Limit of gradients; None leaves them.
        clip_mode: `norm`, `value` or `agc`, as timm has them.
        amp: Mixed precision.
        amp_dtype: Its low precision; CPUs always use bfloat16.
        model_ema: Keep a moving average of the weights.
        model_ema_decay: Its decay.
        model_ema_warmup: Warm the decay up.
        model_ema_force_cpu: Keep it on the CPU.
        dist_bn: Statistics of batch norms after an epoch: `reduce` (mean of all ranks), `broadcast` (those of the
            first) or empty (each its own).
        channels_last: Lay images out channels last.
        synchronize_step: Wait for the device after each step.
        save_images: Save a batch as a picture at each log line.
        mixup_off_epoch: Epoch from which batches are not mixed; 0 never.
        max_steps: Training ends after so many steps, even within an epoch.
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
        """Those of some settings that the engine knows by the same name, with some of its own in their place."""
        names = {field.name for field in fields(cls)}
        return cls(**{key: value for key, value in settings.items() if key in names} | own)

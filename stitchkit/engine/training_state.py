"""The state of a training: weights, moving average, optimizer and loss scaler, as a checkpoint has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from timm.utils import unwrap_model

from stitchkit.engine.checkpoint_schema import check
from stitchkit.engine.loop import Trainer
from stitchkit.engine.optimizers import load_optimizer
from stitchkit.errors import InputError
from stitchkit.networks.weights import load_content

_CYCLES = ("OneCycleLR", "CyclicLR")
"""Schedules of torch that move momentum and betas too."""


def training_state(trainer: Trainer) -> dict[str, Any]:
    """All of a training at the end of a step that no rank has to itself: plain data and tensors only."""
    task, scaler = trainer.task, trainer.scaler
    state: dict[str, Any] = {
        "state_dict": unwrap_model(task.trainable_module).state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
    }
    if task.has_ema():
        state["state_dict_ema"] = task.get_trainable_module(ema=True).module.state_dict()
    if scaler is not None:
        state[scaler.state_dict_key] = scaler.state_dict()
    return state


def restore_training(content: Mapping[str, Any], trainer: Trainer, path: str, *, otherwise: str) -> None:
    """Put optimizer, loss scaler and moving average back; the weights are the caller's.

    Args:
        content: Of the checkpoint.
        trainer: Made with the same settings.
        path: The file, for the message.
        otherwise: What a person can do where the states do not fit.

    Raises:
        InputError: If anything in them does not fit this training.
    """
    task, scaler = trainer.task, trainer.scaler
    if task.has_ema() != ("state_dict_ema" in content):
        state = "has no" if task.has_ema() else "has a"
        raise InputError(f"checkpoint '{path}' {state} moving average of weights; use --model-ema as it was")
    try:
        cycles = type(getattr(trainer.schedule, "scheduler", None)).__name__ in _CYCLES
        load_optimizer(trainer.optimizer, content["optimizer"], cycles=cycles)
        if scaler is not None and scaler.state_dict_key in content:
            check(content[scaler.state_dict_key], scaler.state_dict(), scaler.state_dict_key)
            scaler.load_state_dict(content[scaler.state_dict_key])
    except InputError as error:
        raise InputError(
            f"checkpoint '{path}' does not fit this run: {error}; use the same settings, or {otherwise}"
        ) from error
    if task.has_ema():
        load_content(task.get_trainable_module(ema=True).module, content, path, ema=True)

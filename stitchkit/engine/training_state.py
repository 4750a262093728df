"""The state of a training in a checkpoint: the part that all ranks share, and the part of each rank."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from stitchkit.distributed import gather_objects
from stitchkit.engine import checkpoint_schema as rules
from stitchkit.engine.checkpoint_schema import Schema
from stitchkit.engine.epoch_state import Position
from stitchkit.engine.loop import Trainer
from stitchkit.engine.optimizers import load_optimizer
from stitchkit.errors import InputError
from stitchkit.networks.weights import load_content

_SCALER = "amp_scaler"
"""Key of the loss scaler in checkpoints, as timm has it."""
_KEPT = "task"
"""Key of what tasks of earlier versions kept."""
MOST_EPOCHS = 10**6
_CYCLES = ("OneCycleLR", "CyclicLR")
"""Schedules of torch that also change momentum and betas."""


def training_state(trainer: Trainer) -> dict[str, object]:
    """The part of the state that all ranks share, after a step, as plain data and tensors."""
    task, scaler = trainer.task, trainer.scaler
    state: dict[str, object] = {"state_dict": task.network.state_dict(), "optimizer": trainer.optimizer.state_dict()}
    if task.average is not None:
        state["state_dict_ema"] = task.average.state_dict()
    if scaler is not None:
        state[_SCALER] = scaler.state_dict()
    return state


def check_saved(
    content: Mapping[str, object], path: object, needed: Mapping[str, Schema], optional: Mapping[str, Schema]
) -> None:
    """Compare the plain part of our checkpoints with its schema; weights and states are checked where they are used.

    `needed` and `optional` are the keys that this kind of checkpoint has, or may have, in addition to the common ones.
    """
    text, states = rules.text, rules.table(rules.text, rules.anything)
    epoch = rules.whole(-1, MOST_EPOCHS)
    always = {"format": text, "state_dict": states, "optimizer": states, "opt": text, "epoch": epoch}
    common = {"state_dict_ema": states, "within": states, _SCALER: states, _KEPT: states}
    try:
        rules.fields({**always, **needed}, {**common, **optional})(content, "")
    except InputError as error:
        raise InputError(f"checkpoint '{path}' is damaged: {error}") from error


def gather_within(trainer: Trainer, position: Position) -> dict[str, object]:
    """The position of every rank within an epoch; every rank calls this."""
    # Copies: buffers may be on a GPU, and torch would save the whole of a storage that they share.
    buffers = {name: buffer.cpu().clone() for name, buffer in _own_buffers(trainer).items()}
    own = {"position": position.state(trainer.world.device), "buffers": buffers}
    return {"ranks": gather_objects(own) if trainer.world.size > 1 else [own], **_grid(trainer)}


def restore(content: Mapping[str, object], trainer: Trainer, path: str | Path, *, otherwise: str) -> Position | None:
    """Restore everything but the weights, and return this rank's position within an epoch; None at the end of one.

    Args:
        content: The content of the checkpoint, whose weights are already loaded.
        trainer: Created with the same settings, its network on all ranks.
        path: The file, for messages.
        otherwise: Advice if the states do not fit.
    """
    # The network's weights are loaded before: a run that only tests needs them without any of this.
    average, scaler = trainer.task.average, trainer.scaler
    if (average is not None) != ("state_dict_ema" in content):
        state = "has no" if average is not None else "has a"
        raise InputError(
            f"checkpoint '{path}' {state} moving average of weights; use --model-ema as in the run that wrote it"
        )
    try:
        cycles = type(getattr(trainer.schedule, "scheduler", None)).__name__ in _CYCLES
        load_optimizer(trainer.optimizer, content["optimizer"], cycles=cycles, keeps_rate=trainer.schedule is None)
        if scaler is not None and _SCALER in content:
            saved = content[_SCALER]
            rules.check(saved, scaler.state_dict(), _SCALER)
            assert isinstance(saved, dict), "it was checked"
            scaler.load_state_dict(saved)
    except InputError as error:
        raise InputError(
            f"checkpoint '{path}' does not fit this run: {error}; use the same settings, or {otherwise}"
        ) from error
    if average is not None:
        load_content(average, content, path, ema=True)
    try:
        return _position(content["within"], trainer) if "within" in content else None
    except InputError as error:
        raise InputError(f"checkpoint '{path}': {error}") from error


def _position(within: object, trainer: Trainer) -> Position:
    grid, rank, size = _grid(trainer), trainer.world.rank, trainer.world.size
    rules.check(within, {"ranks": rules.each(rules.anything), **dict.fromkeys(grid, rules.whole(0))}, "within")
    assert isinstance(within, Mapping), "it was checked"
    if wrong := [key for key, value in grid.items() if within[key] != value]:
        listed = ", ".join(f"{key} was {within[key]} and is {grid[key]}" for key in wrong)
        raise InputError(
            f"the checkpoint is from within an epoch, and its steps differ here: {listed}; use the same settings, or "
            "resume from the checkpoint of a completed epoch"
        )
    buffers = _own_buffers(trainer)
    rules.check(within["ranks"], [{"position": rules.anything, "buffers": buffers}] * size, "within.ranks")
    own = within["ranks"][rank]
    path = f"within.ranks[{rank}].position"
    steps, routes = trainer.updates_per_epoch, trainer.task.num_routes
    position = Position.from_state(own["position"], path, trainer.world.device, steps=steps, routes=routes)
    with torch.no_grad():
        for name, buffer in buffers.items():
            buffer.copy_(own["buffers"][name])
    return position


def _grid(trainer: Trainer) -> dict[str, int]:
    """The settings that decide the images and the route of each step of a rank."""
    return {
        "num_ranks": trainer.world.size,
        "seed": trainer.settings.seed,
        "batch_size": trainer.settings.batch_size,
        "grad_accum_steps": trainer.settings.grad_accum_steps,
        "steps_per_epoch": trainer.updates_per_epoch,
    }


def _own_buffers(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Buffers that a step changes on each rank separately: the task's counters and, of several ranks, norm statistics.

    A single rank's norm statistics are among the weights.
    """
    # Each rank computes them from its own images, so the weights in a checkpoint, those of one rank, have only its own.
    task = trainer.task
    own = {f"task.{name}": counter for name, counter in task.counters().items()}
    if trainer.world.size == 1:
        return own
    networks: dict[str, nn.Module | None] = {"": task.network, "ema.": task.average}
    return own | {
        prefix + name: buffer
        for prefix, network in networks.items()
        if network is not None
        for name, buffer in network.named_buffers()
        if name in network.state_dict()
    }

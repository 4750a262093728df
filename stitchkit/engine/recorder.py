"""When a run saves where it stands, and how it resumes from there within an epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from timm.utils import unwrap_model
from torch import nn

from stitchkit.distributed import gather_over_ranks
from stitchkit.engine.checkpoint_schema import anything, check, each, whole
from stitchkit.engine.epoch_state import Position
from stitchkit.engine.loop import Trainer
from stitchkit.engine.signals import StopSignals
from stitchkit.engine.training_state import training_state
from stitchkit.errors import InputError, Stopped

SaveWithin = Callable[[int, Position, Mapping[str, Any]], Path]
"""Writes the state within an epoch, given with the epoch's number and the position; the file."""


class Recorder:
    """Saves a run within its epochs: every so many steps, and before it stops for a signal.

    Args:
        trainer: What is saved.
        signals: What it stops for.
        save: Writes the state, with what the command adds to it; called on the primary rank.
    """

    def __init__(self, trainer: Trainer, signals: StopSignals, save: SaveWithin):
        self._trainer = trainer
        self._signals = signals
        self._write = save

    def after_step(self, epoch: int, position: Position) -> None:
        """Save within an epoch where that is due; the end of its last step is left to `after_steps`.

        Raises:
            Stopped: If a signal came.
        """
        if position.done < len(self._trainer.steps(epoch)):
            self._save_if_due(epoch, position)

    def after_steps(self, epoch: int, position: Position) -> None:
        """Save between the last step of an epoch and its validation, where that is due.

        Raises:
            Stopped: If a signal came.
        """
        self._save_if_due(epoch, position)

    def while_validating(self, epoch: int, position: Position) -> None:
        """Give up a validation where a signal came; a resumed run starts it again.

        Raises:
            Stopped: If a signal came.
        """
        if number := self._signals.agreed():
            self._stop(epoch, position, number)

    def _save_if_due(self, epoch: int, position: Position) -> None:
        interval = self._trainer.settings.checkpoint_interval
        if number := self._signals.agreed():
            self._stop(epoch, position, number)
        if interval and position.done % interval == 0:
            self._save(epoch, position)

    def _stop(self, epoch: int, position: Position, number: int) -> None:
        place = self._save(epoch, position)
        raise Stopped(number, f"step {position.done} of epoch {epoch + 1} is saved in {place}")

    def _save(self, epoch: int, position: Position) -> Path | None:
        """Save where all ranks stand; every rank calls this. The file, on the primary rank."""
        position.window.read()  # a checkpoint with a loss that is not finite would end each run that resumes from it
        check_finite(self._trainer, epoch)
        world = self._trainer.world
        own = {"position": position.state(world.device), "buffers": _buffers(self._trainer)}
        ranks: list[Any] | None = [own] * world.size if world.is_primary else None
        if world.size > 1:
            dist.gather_object(own, ranks)
        if not world.is_primary:
            return None
        within = {"within": {"ranks": ranks, **_grid(self._trainer)}}
        return self._write(epoch, position, training_state(self._trainer) | within)


def check_finite(trainer: Trainer, epoch: int, losses: Iterable[float] = ()) -> None:
    """Refuse to save what an update broke; the loss of a step was computed before its update. Every rank calls this.

    Args:
        trainer: What is saved.
        epoch: Number of the epoch.
        losses: Of a validation.

    Raises:
        InputError: If a weight, a statistic of a norm or a validation loss is not finite, on any rank.
    """
    finite = torch.tensor(float(_is_finite(trainer.task.get_trainable_module())), device=trainer.world.device)
    if not gather_over_ranks(finite).all() or not all(map(math.isfinite, losses)):
        raise InputError(
            f"weights, statistics of norms or validation loss are not finite after epoch {epoch + 1}; stopped. The "
            "last good checkpoint is kept. Lower the learning rate, clip gradients, or train without --amp"
        )


def _is_finite(network: nn.Module) -> bool:
    """Whether all that is saved of a network is finite; buffers may be masks, which hold infinities by right."""
    tensors = [value.isfinite().all() for value in network.parameters()]
    for name, buffer in network.named_buffers():
        is_statistic = name.endswith(("running_mean", "running_var"))
        tensors.append((buffer.isfinite() if is_statistic else ~buffer.isnan()).all())
    return all(map(bool, tensors))


def restore_position(content: Mapping[str, Any], trainer: Trainer, path: str) -> Position | None:
    """Where this rank resumes within an epoch; its own buffers are put back, which may differ between ranks.

    Args:
        content: Of the checkpoint; optimizer and weights are back.
        trainer: Made with the same settings, its network on all ranks.
        path: The file, for the message.

    Returns:
        The position; None at the end of an epoch.

    Raises:
        InputError: If the steps of an epoch are other ones here, or it is no position in them.
    """
    try:
        return _position(content.get("within"), trainer)
    except InputError as error:
        raise InputError(f"checkpoint '{path}': {error}") from error


def _position(within: Any, trainer: Trainer) -> Position | None:
    if within is None:
        return None
    grid, rank, size = _grid(trainer), trainer.world.rank, trainer.world.size
    check(within, {"ranks": each(anything), **dict.fromkeys(grid, whole(0))}, "within")
    if wrong := [key for key, value in grid.items() if within[key] != value]:
        listed = ", ".join(f"{key} was {within[key]} and is {grid[key]}" for key in wrong)
        raise InputError(
            f"the checkpoint is from within an epoch, and its steps are other ones here: {listed}; use the same "
            "settings, or resume from the checkpoint of an epoch's end"
        )
    buffers = _own_buffers(trainer)
    check(within["ranks"], [{"position": anything, "buffers": buffers}] * size, "within.ranks")
    own = within["ranks"][rank]
    place = f"within.ranks[{rank}].position"
    steps, routes = trainer.updates_per_epoch, trainer.task.num_routes
    position = Position.from_state(own["position"], place, trainer.world.device, steps=steps, stitches=routes)
    with torch.no_grad():
        for name, buffer in buffers.items():
            buffer.copy_(own["buffers"][name])
    return position


def _grid(trainer: Trainer) -> dict[str, int]:
    """What says which images and which route a step of a rank has."""
    return {
        "num_ranks": trainer.world.size,
        "seed": trainer.settings.seed,
        "batch_size": trainer.settings.batch_size,
        "grad_accum_steps": trainer.settings.grad_accum_steps,
        "steps_per_epoch": trainer.updates_per_epoch,
    }


def _buffers(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: buffer.cpu().clone() for name, buffer in _own_buffers(trainer).items()}


def _own_buffers(trainer: Trainer) -> dict[str, torch.Tensor]:
    """What a step changes on each rank by itself: the task's counters and, of several ranks, statistics of batch norms.

    Those of a single rank are among the weights.
    """
    task = trainer.task
    own = {f"task.{name}": counter for name, counter in task.counters().items()}
    if trainer.world.size == 1:
        return own
    networks: dict[str, nn.Module] = {"": unwrap_model(task.trainable_module)}
    if task.has_ema():
        networks["ema."] = task.get_trainable_module(ema=True).module
    return own | {
        prefix + name: buffer
        for prefix, network in networks.items()
        for name, buffer in network.named_buffers()
        if name in network.state_dict()
    }

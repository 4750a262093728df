"""When a run saves where it stands, and how it goes on from there within an epoch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from timm.utils import unwrap_model
from torch import nn

from stitchkit.distributed import gather_over_ranks
from stitchkit.errors import InputError, Stopped
from stitchkit.measure.evaluate import Score
from stitchkit.train.checkpoint import Checkpoints, training_state
from stitchkit.train.checkpoint_schema import anything, check, each, whole
from stitchkit.train.epoch_state import Position
from stitchkit.train.loop import Trainer
from stitchkit.train.session import Session
from stitchkit.train.signals import StopSignals


class Recorder:
    """Saves a run: at the end of each epoch, every so many steps, and before it stops for a signal.

    Args:
        session: The run.
        trainer: What is saved.
        checkpoints: The files.
        signals: What it stops for.
    """

    def __init__(self, session: Session, trainer: Trainer, checkpoints: Checkpoints, signals: StopSignals):
        self._session = session
        self._trainer = trainer
        self._checkpoints = checkpoints
        self._signals = signals

    def after_step(self, epoch: int, position: Position) -> None:
        """Save within an epoch where that is due; the end of its last step is left to `after_steps`.

        Raises:
            Stopped: If a signal came.
        """
        if position.done < self._trainer.updates_per_epoch:
            self._save_if_due(epoch, position)

    def after_steps(self, epoch: int, position: Position) -> None:
        """Save between the last step of an epoch and its validation, where that is due.

        Raises:
            Stopped: If a signal came.
        """
        self._save_if_due(epoch, position)

    def while_validating(self, epoch: int, position: Position) -> None:
        """Give up a validation where a signal came; a run that goes on begins it anew.

        Raises:
            Stopped: If a signal came.
        """
        if number := self._signals.agreed():
            self._stop(epoch, position, number)

    def save_epoch(self, epoch: int, metric: float) -> None:
        """Save a finished epoch; on the primary rank."""
        self._checkpoints.save(self._state(), epoch=epoch, metric=metric)

    def _save_if_due(self, epoch: int, position: Position) -> None:
        interval = self._session.recipe.run.recovery_interval
        if number := self._signals.agreed():
            self._stop(epoch, position, number)
        if interval and position.done % interval == 0:
            self._save(epoch, position)

    def _stop(self, epoch: int, position: Position, number: int) -> None:
        self._save(epoch, position)
        raise Stopped(number, f"step {position.done} of epoch {epoch + 1} is saved in {self._checkpoints.last}")

    def _save(self, epoch: int, position: Position) -> None:
        """Save where all ranks stand; every rank calls this."""
        position.window.read()  # a checkpoint with a loss that is not finite would end each run that goes on from it
        check_finite(self._trainer, {}, epoch)
        world = self._session.world
        own = {"position": position.state(world.device), "buffers": _buffers(self._trainer)}
        ranks: list[Any] | None = [own] * world.size if world.is_primary else None
        if world.size > 1:
            dist.gather_object(own, ranks)
        if world.is_primary:
            within = {"within": {"ranks": ranks, **_grid(self._trainer)}}
            self._checkpoints.save_within(self._state() | within, epoch=epoch)

    def _state(self) -> dict[str, Any]:
        return training_state(self._session, self._trainer.task, self._trainer.optimizer, self._trainer.scaler)


def check_finite(trainer: Trainer, scores: Mapping[str, Score], epoch: int) -> None:
    """Refuse to save what an update broke; the loss of a step was computed before its update. Every rank calls this.

    Raises:
        InputError: If a weight, a statistic of a norm or a validation loss is not finite, on any rank.
    """
    finite = torch.tensor(float(_is_finite(trainer.task.get_trainable_module())), device=trainer.world.device)
    if not gather_over_ranks(finite).all() or not all(torch.tensor(score.loss).isfinite() for score in scores.values()):
        raise InputError(
            f"weights, statistics of norms or validation loss are not finite after epoch {epoch + 1}; stopped. The "
            "last good checkpoint is kept. Lower the learning rate, clip gradients (--clip-grad 1), or train with "
            "--no-amp"
        )


def _is_finite(network: nn.Module) -> bool:
    """Whether all that is saved of a network is finite; buffers may be masks, which hold infinities by right."""
    tensors = [value.isfinite().all() for value in network.parameters()]
    for name, buffer in network.named_buffers():
        is_statistic = name.endswith(("running_mean", "running_var"))
        tensors.append((buffer.isfinite() if is_statistic else ~buffer.isnan()).all())
    return all(map(bool, tensors))


def restore_position(content: Mapping[str, Any], trainer: Trainer) -> Position | None:
    """Where this rank goes on within an epoch; its own buffers are put back, which may differ between ranks.

    Args:
        content: Of the checkpoint; optimizer and weights are back.
        trainer: Made with the same settings, its network on all ranks.

    Returns:
        The position; None at the end of an epoch.

    Raises:
        InputError: If the steps of an epoch are other ones here, or it is no position in them.
    """
    try:
        return _position(content.get("within"), trainer)
    except InputError as error:
        raise InputError(f"checkpoint '{trainer.recipe.run.resume}': {error}") from error


def _position(within: Any, trainer: Trainer) -> Position | None:
    if within is None:
        return None
    grid, rank, size = _grid(trainer), trainer.world.rank, trainer.world.size
    check(within, {"ranks": each(anything), **dict.fromkeys(grid, whole(0))}, "within")
    if wrong := [key for key, value in grid.items() if within[key] != value]:
        listed = ", ".join(f"{key} was {within[key]} and is {grid[key]}" for key in wrong)
        raise InputError(
            f"the checkpoint is from within an epoch, and its steps are other ones here: {listed}; use the same "
            "settings, or go on from the end of an epoch, --resume checkpoint-<epoch>.pth.tar"
        )
    buffers = _own_buffers(trainer)
    check(within["ranks"], [{"position": anything, "buffers": buffers}] * size, "within.ranks")
    own, stitches = within["ranks"][rank], max(trainer.sampler.cfg_ids) + 1 if trainer.sampler else 0
    place = f"within.ranks[{rank}].position"
    steps = trainer.updates_per_epoch
    position = Position.from_state(own["position"], place, trainer.world.device, steps=steps, stitches=stitches)
    with torch.no_grad():
        for name, buffer in buffers.items():
            buffer.copy_(own["buffers"][name])
    return position


def _grid(trainer: Trainer) -> dict[str, int]:
    """What says which images and which stitch a step of a rank has."""
    return {
        "num_ranks": trainer.world.size,
        "seed": trainer.recipe.run.seed,
        "batch_size": trainer.recipe.data.batch_size,
        "grad_accum_steps": trainer.recipe.optim.grad_accum_steps,
        "steps_per_epoch": trainer.updates_per_epoch,
    }


def _buffers(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: buffer.cpu().clone() for name, buffer in _own_buffers(trainer).items()}


def _own_buffers(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Buffers that a step changes on each rank by itself, such as statistics of batch norms; none on a single rank."""
    if trainer.world.size == 1:  # the weights hold them
        return {}
    task = trainer.task
    networks: dict[str, nn.Module] = {"": unwrap_model(task.trainable_module)}
    if task.has_ema():
        networks["ema."] = task.get_trainable_module(ema=True).module
    return {
        prefix + name: buffer
        for prefix, network in networks.items()
        for name, buffer in network.named_buffers()
        if name in network.state_dict()
    }

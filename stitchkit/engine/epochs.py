"""The epochs of every task: their steps, agreement of the ranks, and checkpoints within them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from timm.utils import distribute_bn
from torch import nn

from stitchkit.data.unreadable import report
from stitchkit.distributed import gather_over_ranks
from stitchkit.engine.epoch_state import Position
from stitchkit.engine.loop import Trainer
from stitchkit.engine.signals import StopSignals
from stitchkit.engine.training_state import gather_within, training_state
from stitchkit.errors import InputError, Stopped

SaveWithin = Callable[[int, Position, Mapping[str, object]], Path]
"""Writes the state within an epoch, given with the epoch's number and the position; the file."""


class TrainedEpoch(NamedTuple):
    """An epoch whose steps are done.

    Args:
        number: Of the epoch.
        position: Its end.
        loss: Mean over its steps and all ranks.
        steps: How many were trained since the run was started.
        seconds: How long those took.
        after_batch: Called after each batch of its validation; a signal stops the run there.
    """

    number: int
    position: Position
    loss: float
    steps: int
    seconds: float
    after_batch: Callable[[], None]


def train_epochs(
    trainer: Trainer, epochs: range, position: Position | None, *, save: SaveWithin,
    finish: Callable[[TrainedEpoch], None],
) -> None:  # fmt: skip
    """Train epoch by epoch; a signal, or an interval of steps, saves where every rank stands.

    Args:
        trainer: What is trained.
        epochs: From the first to train to the last of all; it ends earlier with `max_steps`.
        position: Where to resume within the first; None at its start.
        save: Writes the state within an epoch; called on the primary rank.
        finish: Validates an epoch and saves it; called on every rank.

    Raises:
        InputError: If a loss or a weight is not finite, or too many images cannot be read.
        Stopped: If a signal came; all is saved.
    """
    with StopSignals(trainer.world) as signals:
        saver = _Saver(trainer, signals, save)
        for epoch in epochs:
            if not trainer.steps(epoch):
                break
            here, position = position or Position(), None
            finish(_train_epoch(trainer, saver, epoch, epochs.stop, here))


def _train_epoch(trainer: Trainer, saver: _Saver, epoch: int, num_epochs: int, here: Position) -> TrainedEpoch:
    """Train an epoch, or the rest of it; the schedule then stands at the next one."""
    began, done, last = time.perf_counter(), here.done, len(trainer.steps(epoch))

    def after_step(position: Position) -> None:
        if position.done < last:  # the end of the last step is saved below, when norms and schedule have their state
            saver.save_if_due(epoch, position)

    loss = trainer.train_epoch(epoch, num_epochs, position=here, after_step=after_step)
    trainer.start_at(epoch + 1, loss=loss)
    for loader in trainer.loaders:
        report(loader.dataset)
    if done < last:
        distribute_batch_norms(trainer)
        saver.save_if_due(epoch, here)
    seconds, steps = time.perf_counter() - began, max(here.done - done, 1)
    return TrainedEpoch(epoch, here, loss, steps, seconds, partial(saver.stop_if_asked, epoch, here))


def distribute_batch_norms(trainer: Trainer) -> None:
    """Give all ranks the same statistics of batch norms, as the settings say."""
    settings, task, size = trainer.settings, trainer.task, trainer.world.size
    if size == 1 or not settings.dist_bn:
        return
    distribute_bn(task.get_trainable_module(), size, settings.dist_bn == "reduce")
    if task.has_ema() and not settings.model_ema_force_cpu:  # NCCL exchanges nothing that lies on a CPU
        distribute_bn(task.get_trainable_module(ema=True), size, settings.dist_bn == "reduce")


class _Saver:
    """Saves a run within its epochs: every so many steps, and before it stops for a signal."""

    def __init__(self, trainer: Trainer, signals: StopSignals, write: SaveWithin):
        self._trainer = trainer
        self._signals = signals
        self._write = write

    def save_if_due(self, epoch: int, position: Position) -> None:
        """Save after a step where that is due.

        Raises:
            Stopped: If a signal came.
        """
        interval = self._trainer.settings.checkpoint_interval
        self.stop_if_asked(epoch, position)
        if interval and position.done % interval == 0:
            self._save(epoch, position)

    def stop_if_asked(self, epoch: int, position: Position) -> None:
        """Save and stop where a signal came; of a validation nothing is saved, and a resumed run repeats it.

        Raises:
            Stopped: If one came.
        """
        if number := self._signals.agreed():
            place = self._save(epoch, position)
            raise Stopped(number, f"step {position.done} of epoch {epoch + 1} is saved in {place}")

    def _save(self, epoch: int, position: Position) -> Path | None:
        """Save where all ranks stand; every rank calls this. The file, on the primary rank."""
        position.window.read()  # a checkpoint with a loss that is not finite would end each run that resumes from it
        check_finite(self._trainer, epoch)
        within = gather_within(self._trainer, position)
        if within is None:
            return None
        return self._write(epoch, position, training_state(self._trainer) | {"within": within})


def check_finite(trainer: Trainer, epoch: int, losses: Iterable[float] = ()) -> None:
    """Refuse to save what an update broke; the loss of a step was computed before its update. Every rank calls this.

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

"""The epochs of every task: their steps, agreement of the ranks, and checkpoints within them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
from stitchkit.errors import NotFinite, Stopped

SaveWithin = Callable[[int, Position, Mapping[str, object]], Path]
"""Writes the state within an epoch, given the epoch's number, the position and the state, and returns the file."""


class TrainedEpoch(NamedTuple):
    """An epoch after its last step.

    Args:
        number: Its number.
        position: The position at its end.
        loss: Mean over its steps and all ranks.
        steps: Steps of it that this process trained.
        seconds: Time that they took.
        after_batch: Call this after each batch of validation, so that a signal can stop the run there.
    """

    number: int
    position: Position
    loss: float
    steps: int
    seconds: float
    after_batch: Callable[[], None]


def train_epochs(
    trainer: Trainer, epochs: range, position: Position | None, *, save: SaveWithin,
    finish: Callable[[TrainedEpoch], None], after_step: Callable[[int], None] = lambda _: None,
) -> None:  # fmt: skip
    """Train epoch by epoch; on a signal, or at an interval of steps, save the position of every rank.

    Args:
        trainer: Trains the task.
        epochs: From the first epoch to train to the last; `max_steps` may end it earlier.
        position: Where to resume within the first epoch; None for its start.
        save: Called on the primary rank.
        finish: Validates an epoch and saves it; called on every rank.
        after_step: Called with the number of steps so far after each step but the last of an epoch, before it is saved.
    """
    with StopSignals(trainer.world) as signals:
        for epoch in epochs:
            if not trainer.steps(epoch):
                break
            saver, position = _Saver(trainer, signals, save, epoch, position or Position()), None
            finish(_train_epoch(trainer, saver, epoch, epochs.stop, after_step))


def _train_epoch(
    trainer: Trainer, saver: _Saver, epoch: int, num_epochs: int, then: Callable[[int], None]
) -> TrainedEpoch:
    """Train an epoch, or the rest of it, and advance the schedule to the next one."""
    here, last, began = saver.position, len(trainer.steps(epoch)), time.perf_counter()
    done = here.done

    def after_step(_: Position) -> None:
        if here.done < last:  # the last step is saved below, once norms and schedule are up to date
            then(trainer.steps(epoch).start + here.done)
            saver.save_if_due()

    loss = trainer.train_epoch(epoch, num_epochs, position=here, after_step=after_step)
    trainer.start_at(epoch + 1, loss=loss)
    for loader in trainer.loaders:
        report(loader.dataset)
    if done < last:
        distribute_batch_norms(trainer)
        saver.save_if_due()
    seconds, steps = time.perf_counter() - began, max(here.done - done, 1)
    return TrainedEpoch(epoch, here, loss, steps, seconds, saver.stop_if_asked)


@dataclass(frozen=True)
class _Saver:
    """Saves a run within an epoch: at an interval of steps, and before it stops for a signal."""

    trainer: Trainer
    signals: StopSignals
    write: SaveWithin
    epoch: int
    position: Position

    def save_if_due(self) -> None:
        self.stop_if_asked()
        interval = self.trainer.settings.checkpoint_interval
        if interval and self.position.done % interval == 0:
            self._save()

    def stop_if_asked(self) -> None:
        """Save and stop if a signal came. A validation is not saved, so a resumed run repeats it."""
        if number := self.signals.agreed():
            path = self._save()
            raise Stopped(number, f"step {self.position.done} of epoch {self.epoch + 1} is saved in {path}")

    def _save(self) -> Path | None:
        """Save the position of all ranks (every rank calls this); returns the file on the primary rank."""
        self.position.read()  # every run that resumed from a checkpoint with a non-finite loss would stop
        check_finite(self.trainer, self.epoch)
        within = gather_within(self.trainer, self.position)
        if not self.trainer.world.is_primary:
            return None
        return self.write(self.epoch, self.position, training_state(self.trainer) | {"within": within})


def distribute_batch_norms(trainer: Trainer) -> None:
    """Give all ranks the same batch-norm statistics, as the settings require."""
    settings, size = trainer.settings, trainer.world.size
    for ema in (False, True):
        network = trainer.task.get_trainable_module(ema=ema)
        is_elsewhere = ema and settings.model_ema_force_cpu  # NCCL cannot exchange tensors on a CPU
        if size > 1 and settings.dist_bn and network is not None and not is_elsewhere:
            distribute_bn(network, size, settings.dist_bn == "reduce")


def check_finite(trainer: Trainer, epoch: int, losses: Sequence[float] = ()) -> None:
    """Refuse to save a network that an update broke; every rank calls this.

    The loss of a step cannot show it, because it is computed before the update.
    """
    finite = torch.tensor(float(_is_finite(trainer.task.get_trainable_module())), device=trainer.world.device)
    if not gather_over_ranks(finite).all() or not all(map(math.isfinite, losses)):
        what = "weights, statistics of norms or validation loss" if losses else "weights or statistics of norms"
        raise NotFinite(f"{what} are not finite after epoch {epoch + 1}")


def _is_finite(network: nn.Module) -> bool:
    """Whether everything saved of a network is finite; buffers may be masks, which may contain infinities."""
    tensors = [value.isfinite().all() for value in network.parameters()]
    for name, buffer in network.named_buffers():
        is_statistic = name.endswith(("running_mean", "running_var"))
        tensors.append((buffer.isfinite() if is_statistic else ~buffer.isnan()).all())
    return all(map(bool, tensors))

"""An epoch as every task has it: its steps, agreement of the ranks, and a place to resume from."""

from __future__ import annotations

from timm.utils import distribute_bn

from stitchkit.data.unreadable import report
from stitchkit.engine.epoch_state import Position
from stitchkit.engine.loop import Trainer
from stitchkit.engine.recorder import Recorder


def setup_ema(trainer: Trainer) -> None:
    """Give the task a moving average of its weights, where the settings ask for it."""
    settings = trainer.settings
    if settings.model_ema:
        device = "cpu" if settings.model_ema_force_cpu else None
        trainer.task.setup_ema(decay=settings.model_ema_decay, use_warmup=settings.model_ema_warmup, device=device)


def run_epoch(trainer: Trainer, recorder: Recorder, epoch: int, num_epochs: int, position: Position) -> float:
    """Train an epoch, or the rest of it; the schedule then stands at the next one.

    Args:
        trainer: What is trained.
        recorder: Saves it within the epoch.
        epoch: Number of the epoch.
        num_epochs: How many there are.
        position: Where to resume within it; it is kept up to date.

    Returns:
        The mean loss over its steps and all ranks.

    Raises:
        InputError: If a loss is not finite, or too many images cannot be read.
        Stopped: If a signal came; all is saved.
    """
    has_trained = position.done == len(trainer.steps(epoch))
    loss = trainer.train_epoch(
        epoch, num_epochs, position=position, after_step=lambda here: recorder.after_step(epoch, here)
    )
    trainer.start_at(epoch + 1, loss=loss)
    report(trainer.loader.dataset)
    if not has_trained:
        distribute_batch_norms(trainer)
        recorder.after_steps(epoch, position)
    return loss


def distribute_batch_norms(trainer: Trainer) -> None:
    """Give all ranks the same statistics of batch norms, as the settings say."""
    settings, task, size = trainer.settings, trainer.task, trainer.world.size
    if size == 1 or not settings.dist_bn:
        return
    distribute_bn(task.get_trainable_module(), size, settings.dist_bn == "reduce")
    if task.has_ema() and not settings.model_ema_force_cpu:
        distribute_bn(task.get_trainable_module(ema=True), size, settings.dist_bn == "reduce")

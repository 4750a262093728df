"""Figures of each epoch to Weights & Biases, where that is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stitchkit.errors import InputError
from stitchkit.measure.evaluate import Score
from stitchkit.train.session import Session


def open_tracker(session: Session) -> Any:
    """The run of the `wandb` package that the primary rank logs to; None where nothing is logged.

    Raises:
        InputError: If it refuses the run.
    """
    run = session.recipe.run
    if not run.log_wandb or not session.world.is_primary:
        return None
    import wandb

    try:
        return wandb.init(
            project=run.wandb_project,
            name=session.folder.name,
            config=session.recipe.flat(),
            tags=run.wandb_tags,
            dir=str(session.folder),
            id=run.wandb_resume_id,
            resume="must" if run.wandb_resume_id else None,
        )
    except wandb.Error as error:
        raise InputError(f"wandb refuses the run: {' '.join(str(error).split())}; see WANDB_MODE=offline") from error


def log_epoch(tracker: Any, epoch: int, *, loss: float, rate: float, scores: Mapping[str, Score]) -> None:
    """Log an epoch under the names that `summary.csv` has.

    Args:
        tracker: What `open_tracker` gave.
        epoch: Number of the epoch.
        loss: Mean training loss.
        rate: Learning rate.
        scores: What the validation found, by label.
    """
    figures = {
        f"eval_{label}_{key}": value for label, score in scores.items() for key, value in score._asdict().items()
    }
    tracker.log({"epoch": epoch, "train_loss": loss, "lr": rate, **figures})

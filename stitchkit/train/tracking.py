"""Figures of each epoch to Weights & Biases, where that is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
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
    return start_run(
        session.folder,
        session.recipe.flat(),
        project=run.wandb_project,
        tags=run.wandb_tags,
        id=run.wandb_resume_id,
        resume="must" if run.wandb_resume_id else None,
    )


def start_run(folder: Path, config: Mapping[str, Any], **options: Any) -> Any:
    """A run of the `wandb` package, named as its folder.

    Args:
        folder: Of the run.
        config: All settings.
        options: Further arguments of `wandb.init`.

    Raises:
        InputError: If it refuses the run, or is not installed.
    """
    try:
        import wandb
    except ImportError as error:
        raise InputError("the run is to be logged, but wandb is not installed; pip install wandb") from error
    try:
        return wandb.init(name=folder.name, config=dict(config), dir=str(folder), **options)
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

"""Figures of each epoch of a training to TensorBoard and Weights & Biases, where that is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stitchkit.engine.epoch_state import StitchLoss
from stitchkit.engine.tracking import open_board, start_run
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


class Tracking:
    """Figures of each epoch to TensorBoard and Weights & Biases; only on the primary rank, and where it is asked for.

    Args:
        session: The run.
        start: First epoch that is logged.

    Raises:
        InputError: If a package is missing, or refuses the run.
    """

    def __init__(self, session: Session, start: int):
        self._run = open_tracker(session)
        is_asked = session.recipe.run.log_tensorboard and session.world.is_primary
        self._board = open_board(session.folder, start) if is_asked else None

    def log_epoch(
        self, epoch: int, *, loss: float, rate: float, scores: Mapping[str, Score], stitches: Mapping[int, StitchLoss]
    ) -> None:
        """Log an epoch under the names that `summary.csv` has, and the loss of each stitch by its `cfg_id`.

        Args:
            epoch: Number of the epoch.
            loss: Mean training loss.
            rate: Learning rate.
            scores: What the validation found, by label.
            stitches: Mean training losses of the stitches that were drawn, by `cfg_id`.
        """
        figures: dict[str, float] = {"train_loss": loss, "lr": rate}
        for label, score in scores.items():
            figures |= {f"eval_{label}_{key}": value for key, value in score._asdict().items()}
        figures |= {f"stitch_loss/{cfg_id}": found.loss for cfg_id, found in stitches.items()}
        if self._run is not None:
            self._run.log({"epoch": epoch, **figures})
        if self._board is not None:
            for name, value in figures.items():
                self._board.add_scalar(name, value, epoch)
            self._board.flush()

    def finish(self) -> None:
        """Close what is open."""
        if self._run is not None:
            self._run.finish()
        if self._board is not None:
            self._board.close()

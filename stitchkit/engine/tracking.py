"""Logging of figures to TensorBoard and Weights & Biases."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stitchkit.distributed import World
from stitchkit.errors import InputError, one_line
from stitchkit.files import refuse_link
from stitchkit.optional import optional

if TYPE_CHECKING:
    import wandb
    from torch.utils.tensorboard import SummaryWriter


class Tracking:
    """Logs figures to TensorBoard and Weights & Biases, on the primary rank, if requested.

    `config` are all settings, `options` the arguments of `wandb.init`, `board` the first epoch in TensorBoard.
    """

    def __init__(
        self, folder: Path, world: World, config: Mapping[str, object], *,
        options: Mapping[str, Any] | None = None, board: int | None = None,
    ):  # fmt: skip
        self.run: wandb.Run | None = None
        self._board: SummaryWriter | None = None
        if options is not None and world.is_primary:
            optional("wandb", "log", "logging the run")
            import wandb

            refuse_link(folder / "wandb")
            try:
                self.run = wandb.init(name=folder.name, config=dict(config), dir=str(folder), **options)
            except wandb.Error as error:
                raise InputError(f"wandb rejects the run: {one_line(error)}; see WANDB_MODE=offline") from error
        if board is not None and world.is_primary:
            optional("tensorboard", "log", "logging the run")
            from torch.utils.tensorboard import SummaryWriter

            refuse_link(folder / "tensorboard")
            # Epochs of a stopped run that are in the folder and later than the first are hidden.
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=board)

    def log(self, figures: Mapping[str, float], *, epoch: int, step: int | None = None) -> None:
        """Log the figures of an epoch; without a step, wandb counts the calls and gets the epoch as a figure."""
        if self.run is not None:
            self.run.log({"epoch": epoch, **figures} if step is None else dict(figures), step=step)
        if self._board is not None:
            for name, value in figures.items():
                self._board.add_scalar(name, value, epoch)
            self._board.flush()

    def finish(self) -> None:
        """Finish the wandb run and close the TensorBoard writer."""
        if self.run is not None:
            self.run.finish()
        if self._board is not None:
            self._board.close()

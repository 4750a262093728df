"""Runs of TensorBoard and Weights & Biases."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stitchkit.errors import InputError, one_line
from stitchkit.files import refuse_link


def start_run(folder: Path, config: Mapping[str, Any], **options: Any) -> Any:
    """A run of the `wandb` package, named as its folder.

    Args:
        folder: Of the run.
        config: All settings.
        options: Further arguments of `wandb.init`.

    Raises:
        InputError: If it refuses the run, is not installed, or its folder is a symbolic link.
    """
    try:
        import wandb
    except ImportError as error:
        raise InputError("the run is to be logged, but wandb is not installed; pip install wandb") from error
    refuse_link(folder / "wandb")
    try:
        return wandb.init(name=folder.name, config=dict(config), dir=str(folder), **options)
    except wandb.Error as error:
        raise InputError(f"wandb refuses the run: {one_line(error)}; see WANDB_MODE=offline") from error


def open_board(folder: Path, start: int) -> Any:
    """TensorBoard's writer of a run.

    Args:
        folder: Of the run.
        start: First epoch that it writes; what is there of later ones came from a run that was stopped, and is hidden.

    Raises:
        InputError: If tensorboard is not installed, or its folder is a symbolic link.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError(
            "the run is to be logged, but tensorboard is not installed; pip install tensorboard"
        ) from error
    place = folder / "tensorboard"
    refuse_link(place)
    return SummaryWriter(str(place), purge_step=start)

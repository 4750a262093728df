"""Training and evaluation from Python, by the settings of the command line."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from stitchkit.errors import InputError
from stitchkit.measure.ledger import LEDGER, Row, read_rows
from stitchkit.settings.recipe import Recipe
from stitchkit.training.checkpoint import LAST
from stitchkit.training.inputs import read_run
from stitchkit.training.run import run
from stitchkit.training.summary import read_summary


@dataclass(frozen=True)
class TrainedRun:
    """A finished training: its folder, and the rows of its `summary.csv`, one dictionary for each epoch."""

    folder: Path
    summary: list[dict[str, float | None]]

    @property
    def checkpoint(self) -> Path:
        """The file of its weights, for `evaluate(resume=...)`, `load_checkpoint` and the commands."""
        return self.folder / LAST


def train(data: str | os.PathLike[str] | None = None, /, **settings: object) -> TrainedRun:
    """Train an SN-Net or a model, as `stitchkit train DATA` does, in this process.

    It uses the process group that it finds, and seeds the random generators of Python, NumPy and torch by `seed`.

    Args:
        data: The folder of the images.
        settings: The command's flags by name, such as `stitch_config="mine.json", epochs=50, resume="auto"`.

    Raises:
        InputError: Where the command ends with an error.
    """
    recipe = _run(data, settings | {"eval": False})
    return TrainedRun(recipe.folder, read_summary(recipe.folder))


def evaluate(data: str | os.PathLike[str] | None = None, /, **settings: object) -> list[Row]:
    """Evaluate stitches of an SN-Net, as `stitchkit train DATA --eval` does, in this process.

    It uses process group and random generators as `train` does.

    Args:
        data: The folder of the images.
        settings: The command's flags by name, such as `stitch_config="mine.json", resume="last.pth.tar"`.

    Returns:
        The rows of the ledger in the run's folder, one for each stitch that was measured there.

    Raises:
        InputError: Where the command ends with an error.
    """
    if settings.get("model") is not None:
        raise InputError("a single model has no ledger; give stitch_config, or use stitchkit train --model --eval")
    recipe = _run(data, settings | {"eval": True})
    return read_rows(recipe.folder / LEDGER)


def _run(data: str | os.PathLike[str] | None, settings: dict[str, object]) -> Recipe:
    flags = settings if data is None else {"data_dir": data, **settings}
    recipe, config = read_run({key: _as_flag(key, value) for key, value in flags.items()})
    if recipe.run.dry_run:
        raise InputError("dry_run has no result to return; use stitchkit train --dry-run")
    run(recipe, config)
    return recipe


def _as_flag(key: str, value: object) -> object:
    """A value as the command line gives it, where Python has more natural types."""
    if key == "anchors" and isinstance(value, list | tuple) and any(callable(anchor) for anchor in value):
        raise InputError("anchors of a training are names or files; pass your own networks to stitchkit.create_snnet")
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    value = [*value] if isinstance(value, list | tuple | range) else value
    if key == "eval_stitches" and isinstance(value, list | int):
        return ",".join(map(str, value if isinstance(value, list) else [value]))
    return value

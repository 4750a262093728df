"""Result files of a job: its trajectory as a table with known columns, and facts about it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stitchkit.assembly.config.job import JobConfig
from stitchkit.assembly.config.settings import TaskConfig
from stitchkit.assembly.train.metrics import tested_figures
from stitchkit.errors import InputError
from stitchkit.files import replacing, write_text
from stitchkit.settings.files import read_settings_file, settings_text

if TYPE_CHECKING:
    import pandas as pd


# Columns that do not depend on the data sets, in their order.
FIRST_COLUMNS = (
    *("Epoch", "Step", "LR", "Loss", "Time/Data", "Time/Step", "Time/Img Per Sec", "Time/Total", "Time/Per Epoch"),
    *("Proc Mem", "GPU Mem"),
)

Row = dict[str, float]
"""The figures of an epoch, by column; a job has one row per epoch, and one for epoch 0."""


def _frame(rows: list[Row]) -> pd.DataFrame:
    import pandas as pd

    found = dict.fromkeys(key for row in rows for key in row)
    return pd.DataFrame(rows, columns=[key for key in dict.fromkeys([*FIRST_COLUMNS, *found]) if key in found])


def write_rows(result: Path, rows: list[Row]) -> None:
    """Write the rows so far as CSV, beside the future result, so that users can watch."""
    with replacing(result.with_suffix(".csv")) as draft:
        _frame(rows).to_csv(draft, index=False)


def write_frame(result: Path, rows: list[Row]) -> None:
    """Write the result, a pickled table by steps as in the publication, which marks the job as done."""
    frame = _frame(rows)
    with replacing(result) as draft:
        frame.set_axis(frame["Step"].tolist()).to_pickle(draft)


def update_metadata(path: Path, content: Mapping[str, object], *, writer: str = "") -> None:
    """Add facts about a job to those in its metadata file.

    The runs of a job with several seeds share the file, and know the same facts; `writer` tells them apart.
    """
    write_text(path, settings_text({**read_metadata(path), **content}), writer=writer)


def read_metadata(path: Path) -> dict[str, Any]:
    """The facts about a job; empty if there are none yet."""
    try:
        return read_settings_file(path) if path.exists() else {}
    except InputError as error:
        raise InputError(f"'{path}', which describes a job, is damaged: {error}; remove it") from error


AVERAGE = "EMA "
"""What the figures of the moving average begin with."""
TRAIN_LOSS = "Overall/Train Loss"
"""The mean of the loss over the epoch."""


def loss_names(num_auxiliary: int) -> list[str]:
    """The published names of the losses of a task."""
    return ["Main Loss", *(f"Aux Loss {number}" for number in range(1, num_auxiliary + 1))]


def accuracy_names(task: TaskConfig) -> list[str]:
    """The names of the accuracy on training images; a dense task has only losses there."""
    return [] if task.is_dense else ["Accuracy"]


def tested_column(task: str, figure: str, *, output: str | None, average: str) -> str:
    """The column of a figure on the test images of a task, perhaps of an inner output or of the moving average."""
    return f"Overall/{task}/Test {average}{output + ' ' if output else ''}{figure}"


def trained_column(task: str, figure: str, *, is_mean: bool) -> str:
    """The column of a figure on the training images of a task: of the last batch, or the mean over the epoch."""
    return f"{'Overall/Train ' if is_mean else ''}{task}/{figure}"


def planned_columns(config: JobConfig) -> list[str]:
    """The columns of the last epoch of a job; that of a GPU's memory is there only with one."""
    train = config.train_config
    tasks, found = train.resolved_tasks, ["Epoch", "Step"]
    several = len(tasks) > 1 or any(task.aux_losses for task in tasks)  # the only loss is `Loss`
    if not config.test_only:
        found = [*FIRST_COLUMNS, TRAIN_LOSS]
        for task in tasks:
            kinds = [*accuracy_names(task), *(loss_names(len(task.aux_losses)) if several else [])]
            found += [trained_column(task.name, kind, is_mean=mean) for mean in (False, True) for kind in kinds]
    if config.test_only or config.eval_checkpoints:
        averages = ["", AVERAGE] if train.model_ema and not config.test_only else [""]
        found += [
            tested_column(task.name, kind, output=output, average=average)
            for number, task in enumerate(tasks)
            for average in averages
            for output, kind in tested_figures(config, number)
        ]
    return found

"""The columns of a job's results: their names, and which a job will have, before it runs."""

from __future__ import annotations

from stitchkit.assembly.config.job import JobConfig
from stitchkit.assembly.config.settings import TaskConfig
from stitchkit.assembly.train.metrics import tested_figures
from stitchkit.assembly.train.result import FIRST_COLUMNS

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

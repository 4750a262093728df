"""The columns that a job's results will have, before it runs."""

from __future__ import annotations

from stitchkit.assembly.config.job import JobConfig
from stitchkit.assembly.train.metrics import create_measures
from stitchkit.assembly.train.result import FIRST_COLUMNS


def planned_columns(config: JobConfig) -> list[str]:
    """The columns of the last epoch of a job; that of a GPU's memory is there only with one."""
    train = config.train_config
    tasks, found = train.resolved_tasks, ["Epoch", "Step"]
    several = len(tasks) > 1 or any(task.aux_losses for task in tasks)  # the only loss is `Loss`
    if not config.test_only:
        found = [*FIRST_COLUMNS, "Overall/Train Loss"]
        for task in tasks:
            aux = [f"Aux Loss {number}" for number in range(1, len(task.aux_losses) + 1)]
            kinds = ["Accuracy", *(["Main Loss", *aux] if several else [])]
            found += [f"{begin}{task.name}/{kind}" for begin in ("", "Overall/Train ") for kind in kinds]
    if config.test_only or config.eval_checkpoints:
        averages = ["", "EMA "] if train.model_ema and not config.test_only else [""]
        figures = [
            f"{average}{metric.output} {kind}" if metric.output else f"{average}{kind}"
            for average in averages
            for number, metric in enumerate(config.metrics)
            for kind in create_measures(metric, f"metrics[{number}]")
        ]
        found += [f"Overall/{task.name}/Test {figure}" for task in tasks for figure in figures]
    return found

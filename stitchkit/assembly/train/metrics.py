"""Figures of merit by name: accuracies, functions of `torch.nn.functional`, and the figures of dense tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias, TypeVar

import torch
from torch.nn import functional as F

from stitchkit.assembly.config.job import JobConfig
from stitchkit.assembly.config.settings import Metric
from stitchkit.assembly.train.optim import named
from stitchkit.assembly.train.result import FIRST_COLUMNS
from stitchkit.errors import InputError, one_line, unknown
from stitchkit.settings.tasks import DENSE

Measure: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Outputs `[B, num_classes]` and labels `[B]` to the sum of a figure over the images."""
_Figure = TypeVar("_Figure")

_OF_NUMBERS = ("cross_entropy", "nll_loss", "multi_margin_loss")  # functions that take the numbers of classes
_OF_VECTORS = (
    "binary_cross_entropy_with_logits", "multilabel_soft_margin_loss", "mse_loss", "l1_loss", "smooth_l1_loss",
    "huber_loss", "cosine_similarity",
)  # fmt: skip
"""Functions that take a label as a vector with a 1 at its class; those that want -1 elsewhere would mean nothing."""

Column: TypeAlias = tuple[str | None, str]
"""An output of the network, None for its own, and the name of a figure: together a column of the result."""


def metrics_of(config: JobConfig, number: int) -> tuple[tuple[Metric, ...], str]:
    """The metrics of a task, and their place in the file: its own, those of the job, or all of a dense task."""
    task, train = config.train_config.resolved_tasks[number], config.train_config
    if task.metrics is not None:
        return task.metrics, f"{train.places[number]}.metrics"
    if task.is_dense and config.metrics:
        return tuple(Metric(metric_fn=name) for name in DENSE[task.task].figures), "metrics"
    return config.metrics, "metrics"


def tested_figures(config: JobConfig, number: int) -> dict[Column, Any]:
    """The figures on the test images of a task by their columns: their names if it is dense, or what measures them."""
    metrics, where = metrics_of(config, number)
    task = config.train_config.resolved_tasks[number]
    return dense_figures(task.task, metrics, where) if task.is_dense else create_all_measures(metrics, where)


def dense_figures(task: str, metrics: Sequence[Metric], where: str = "metrics") -> dict[Column, str]:
    """The metrics of a dense task by their columns."""
    figures: dict[Column, str] = {}
    for number, metric in enumerate(metrics):
        own, known = f"{where}[{number}]", DENSE[task].figures
        if metric.metric_fn not in known:
            raise InputError(f"{own}.metric_fn: {unknown(f'metric of {task}', metric.metric_fn, known)}")
        if metric.metric_fn_args:
            raise InputError(f"{own}.metric_fn_args: {metric.metric_fn} takes none; remove them")
        _add(figures, (metric.output, known[metric.metric_fn]), metric.metric_fn, own)
    return figures


def create_all_measures(metrics: Sequence[Metric], where: str = "metrics") -> dict[Column, Measure]:
    """What all metrics of a task measure, by their columns; errors begin with `where` they are in the file."""
    measures: dict[Column, Measure] = {}
    for number, metric in enumerate(metrics):
        own = f"{where}[{number}]"
        for name, measure in create_measures(metric, own).items():
            _add(measures, (metric.output, name), measure, own)
    return measures


def _add(figures: dict[Column, _Figure], column: Column, figure: _Figure, where: str) -> None:
    if column in figures:
        raise InputError(f"{where}: an earlier metric has this column too, {column[1]}; keep one of them")
    figures[column] = figure


def create_measures(metric: Metric, where: str) -> dict[str, Measure]:
    """What a metric measures, by the names in results; errors begin with `where` it is in the file."""
    if metric.metric_fn == "accuracy":
        return {"Accuracy": partial(_hits, k=1)}
    if metric.metric_fn == "topk_accuracy":
        return {f"Top-{k} Accuracy": partial(_hits, k=k) for k in metric.ranks}
    if task := next((task for task, facts in DENSE.items() if metric.metric_fn in facts.figures), None):
        raise InputError(
            f"{where}.metric_fn is {metric.metric_fn}, a figure of {task}; list it in the metrics of a task of this "
            f"kind, train_config.tasks[N].metrics"
        )
    known = ("accuracy", "topk_accuracy", *_OF_NUMBERS, *_OF_VECTORS)
    name = named("metric", metric.metric_fn, known, f"{where}.metric_fn")
    if "reduction" in metric.metric_fn_args:
        raise InputError(f"{where}.metric_fn_args.reduction: a figure is a mean over images; remove it")
    measure = partial(_total, partial(getattr(F, name), **metric.metric_fn_args), is_of_numbers=name in _OF_NUMBERS)
    try:
        measure(torch.zeros(2, 3), torch.tensor([0, 1]))
    except Exception as error:  # torch raises many types
        raise InputError(
            f"{where}: {name} rejects outputs, labels and metric_fn_args: {one_line(error)}; correct these, or choose "
            "another metric_fn"
        ) from error
    return {name: measure}


def _hits(outputs: torch.Tensor, labels: torch.Tensor, *, k: int) -> torch.Tensor:
    best = outputs.topk(min(k, outputs.shape[1]), dim=1).indices
    return (best == labels[:, None]).sum()


def _total(
    function: Callable[..., torch.Tensor], outputs: torch.Tensor, labels: torch.Tensor, *, is_of_numbers: bool
) -> torch.Tensor:
    target = labels if is_of_numbers else F.one_hot(labels, outputs.shape[1]).to(outputs.dtype)
    return function(outputs, target).mean() * len(labels)


AVERAGE = "EMA "
"""What the figures of the moving average begin with."""
TRAIN_LOSS = "Overall/Train Loss"
"""The mean of the loss over the epoch."""


def loss_names(num_auxiliary: int) -> list[str]:
    """The published names of the losses of a task."""
    return ["Main Loss", *(f"Aux Loss {number}" for number in range(1, num_auxiliary + 1))]


def tested_column(task: str, figure: str, *, output: str | None, average: str) -> str:
    """The column of a figure on the test images of a task, perhaps of an inner output or of the moving average."""
    return f"Overall/{task}/Test {average}{output + ' ' if output else ''}{figure}"


def trained_column(task: str, figure: str, *, is_mean: bool) -> str:
    """The column of a figure on the training images of a task: of the last batch, or the mean over the epoch."""
    return f"{'Overall/Train ' if is_mean else ''}{task}/{figure}"


def planned_columns(config: JobConfig) -> list[str]:
    """The columns of the last epoch of a job; that of a GPU's memory is there only with one."""
    train = config.train_config
    tasks, columns = train.resolved_tasks, ["Epoch", "Step"]
    several = len(tasks) > 1 or any(task.aux_losses for task in tasks)  # the only loss is `Loss`
    if not config.test_only:
        columns = [*FIRST_COLUMNS, TRAIN_LOSS]
        for task in tasks:
            kinds = [*task.trained_figures, *(loss_names(len(task.aux_losses)) if several else [])]
            columns += [trained_column(task.name, kind, is_mean=mean) for mean in (False, True) for kind in kinds]
    if config.test_only or config.eval_checkpoints:
        averages = ["", AVERAGE] if train.model_ema and not config.test_only else [""]
        columns += [
            tested_column(task.name, kind, output=output, average=average)
            for number, task in enumerate(tasks)
            for average in averages
            for output, kind in tested_figures(config, number)
        ]
    return columns

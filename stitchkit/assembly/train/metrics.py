"""Figures of merit by name: accuracies, and functions of `torch.nn.functional` that compare outputs with classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias

import torch
from torch.nn import functional as F

from stitchkit.assembly.config.settings import Metric
from stitchkit.assembly.train.optim import named
from stitchkit.errors import InputError, one_line

Measure: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Outputs `[B, num_classes]` and labels `[B]` to the sum of a figure over the images."""

_OF_NUMBERS: dict[str, Callable[..., torch.Tensor]] = {
    "cross_entropy": F.cross_entropy,
    "nll_loss": F.nll_loss,
    "multi_margin_loss": F.multi_margin_loss,
}
"""Functions that take the numbers of classes."""
_OF_VECTORS: dict[str, Callable[..., torch.Tensor]] = {
    "binary_cross_entropy_with_logits": F.binary_cross_entropy_with_logits,
    "multilabel_soft_margin_loss": F.multilabel_soft_margin_loss,
    "mse_loss": F.mse_loss,
    "l1_loss": F.l1_loss,
    "smooth_l1_loss": F.smooth_l1_loss,
    "huber_loss": F.huber_loss,
    "cosine_similarity": F.cosine_similarity,
}
"""Functions for which a label is a vector with a 1 at its class; those that want -1 elsewhere would mean nothing."""


def create_all_measures(metrics: Sequence[Metric]) -> dict[tuple[str | None, str], Measure]:
    """What all metrics of a job measure, by output and name, which are a column of the result."""
    found: dict[tuple[str | None, str], Measure] = {}
    for number, metric in enumerate(metrics):
        for name, measure in create_measures(metric, f"metrics[{number}]").items():
            if (metric.output, name) in found:
                raise InputError(f"metrics[{number}]: an earlier metric has this column too, {name}; keep one of them")
            found[metric.output, name] = measure
    return found


def create_measures(metric: Metric, place: str) -> dict[str, Measure]:
    """What a metric measures, by the names in results; errors begin with its `place` in the file."""
    if metric.metric_fn == "accuracy":
        return {"Accuracy": partial(_hits, k=1)}
    if metric.metric_fn == "topk_accuracy":
        return {f"Top-{k} Accuracy": partial(_hits, k=k) for k in metric.ranks}
    known = _OF_NUMBERS | _OF_VECTORS
    name = named("metric", metric.metric_fn, ["accuracy", "topk_accuracy", *known], f"{place}.metric_fn")
    if "reduction" in metric.metric_fn_args:
        raise InputError(f"{place}.metric_fn_args.reduction: a figure is a mean over images; remove it")
    measure = partial(_total, partial(known[name], **metric.metric_fn_args), is_of_numbers=name in _OF_NUMBERS)
    try:
        measure(torch.zeros(2, 3), torch.tensor([0, 1]))
    except Exception as error:  # torch raises many types
        raise InputError(
            f"{place}: {name} rejects outputs, labels and metric_fn_args: {one_line(error)}; correct these, or choose "
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

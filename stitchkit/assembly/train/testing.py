"""Tests of a job's network: its figures of merit on the test images of every data set."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import nn

from stitchkit.assembly.config.settings import Metric
from stitchkit.assembly.train.job import Job, engine_settings
from stitchkit.assembly.train.task import Captured, output_of
from stitchkit.data.batches import Batch
from stitchkit.measure.evaluate import Score, batches_of, evaluate

_logger = logging.getLogger(__name__)

_Outputs = Mapping[str | None, Captured | None]
"""The outputs of a network that metrics are of, by name; None is its own."""


class Exam:
    """Tests the network, and its moving average if it has one, on the test images of every task.

    Each image counts once over all ranks.
    """

    def __init__(self, job: Job):
        self._job = job
        self._autocast, _ = engine_settings(job.config).precision(job.world.device)
        # Each has its own hooks: the average is a copy, whose submodules those of the network do not hear.
        networks = {"": job.network}
        if job.trainer is not None and job.trainer.task.average is not None:
            networks["EMA "] = job.trainer.task.average
        self._networks = [
            (prefix, network, _outputs(network, job.config.metrics)) for prefix, network in networks.items()
        ]

    def sit(self, when: str, after_batch: Callable[[], None] = lambda: None) -> tuple[dict[str, float], list[float]]:
        """Figures of every metric on every data set, by the columns of the result, and all losses.

        `when` begins the log line; `after_batch` is called after each batch, equally often on all ranks.
        """
        figures, losses = dict[str, float](), list[float]()
        if not self._job.config.metrics:
            return figures, losses  # a pass over the images would keep nothing
        for number, task in enumerate(self._job.data):
            name = task.config.name
            for average, network, outputs in self._networks:
                batches = batches_of(task.test, self._job.world, name, after_batch)
                scores = self._scores(network, outputs, number, batches)
                losses += [score.loss for score in scores.values()]
                for metric in self._job.config.metrics:
                    prefix = f"{average}{metric.output} " if metric.output else average
                    for kind, figure in _figures(metric, scores[metric.output]).items():
                        figures[f"Overall/{name}/Test {prefix}{kind}"] = figure
        _logger.info("%s  %s", when, "  ".join(f"{name} {figure:.4f}" for name, figure in figures.items()))
        return figures, losses

    def _scores(
        self, network: nn.Module, outputs: _Outputs, number: int, batches: Iterator[Batch]
    ) -> dict[str | None, Score]:
        """The score of each output for a task, all from one pass over its images, since the pass is what takes time."""

        def logits(images: torch.Tensor) -> list[torch.Tensor]:
            own = network(images)
            return [output_of(own if inner is None else inner.take(), number) for inner in outputs.values()]

        device, count = self._job.world.device, len(outputs)
        scores = evaluate(network, logits, batches, device=device, autocast=self._autocast, count=count)
        return dict(zip(outputs, scores, strict=True))


def _outputs(network: nn.Module, metrics: tuple[Metric, ...]) -> _Outputs:
    captured: dict[str | None, Captured | None] = {}
    for number, name in enumerate(metric.output for metric in metrics):
        if name not in captured:
            own = None if name is None else Captured(network, name, f"metrics[{number}]", training=False)
            captured[name] = own
    return captured


def _figures(metric: Metric, found: Score) -> dict[str, float]:
    """Figures as shares of the images, as in the publication, not in percent."""
    if metric.metric_fn == "accuracy":
        return {"Accuracy": found.acc1 / 100}
    return {f"Top-{k} Accuracy": {1: found.acc1, 5: found.acc5}[k] / 100 for k in metric.ranks}

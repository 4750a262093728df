"""Test the network of a job: its figures of merit on the test images of every data set."""

from __future__ import annotations

import logging
from collections.abc import Callable

from torch import nn

from stitchkit.assembly.config.settings import Metric
from stitchkit.assembly.train.data import TaskData
from stitchkit.assembly.train.job import Job, engine_settings
from stitchkit.assembly.train.task import Captured, Judged
from stitchkit.data.loaders import without_padding
from stitchkit.data.unreadable import report
from stitchkit.engine.precision import create_precision
from stitchkit.engine.progress import progress
from stitchkit.measure.evaluate import Score, evaluate_stitch

_logger = logging.getLogger(__name__)


class Exam:
    """Tests the network, and its moving average where it has one, on the test images of every task.

    Each image counts once over all ranks.

    Args:
        job: The job.

    Raises:
        InputError: If a metric names a submodule that the network does not have.
    """

    def __init__(self, job: Job):
        self._job = job
        settings = engine_settings(job.config)
        self._autocast, _ = create_precision(job.world.device, amp=settings.amp, amp_dtype=settings.amp_dtype)
        networks = {"": job.network}
        if job.trainer is not None and job.trainer.task.has_ema():
            networks["EMA "] = job.trainer.task.get_trainable_module(ema=True).module
        self._metrics = [
            (prefix, network, [(metric, _captured(network, metric, n)) for n, metric in enumerate(job.config.metrics)])
            for prefix, network in networks.items()
        ]

    def sit(self, when: str, after_batch: Callable[[], None] = lambda: None) -> dict[str, float]:
        """Figures of every metric on every data set, by the names that the result has for them.

        Args:
            when: What the log says of it.
            after_batch: Called after each batch, equally often on all ranks.
        """
        figures: dict[str, float] = {}
        for number, task in enumerate(self._job.data):
            for average, network, metrics in self._metrics:
                scores: dict[str | None, Score] = {}
                for metric, captured in metrics:
                    if metric.output not in scores:
                        scores[metric.output] = self._score(Judged(network, number, captured), task, after_batch)
                    prefix = f"{average}{metric.output} " if metric.output else average
                    for name, figure in _figures(metric, scores[metric.output]).items():
                        figures[f"Overall/{task.config.name}/Test {prefix}{name}"] = figure
        _logger.info("%s  %s", when, "  ".join(f"{name} {figure:.4f}" for name, figure in figures.items()))
        return figures

    def _score(self, network: Judged, task: TaskData, after_batch: Callable[[], None]) -> Score:
        world, images = self._job.world, without_padding(task.test, self._job.world, after_batch)
        batches = progress(images, world, task.config.name, unit="batch", total=len(task.test))
        score = evaluate_stitch(network, None, batches, device=world.device, autocast=self._autocast)
        report(task.test.dataset)
        return score


def _captured(network: nn.Module, metric: Metric, number: int) -> Captured | None:
    """What a metric judges inside a network; None for the network's own output."""
    return None if metric.output is None else Captured(network, metric.output, f"metrics[{number}]", training=False)


def _figures(metric: Metric, score: Score) -> dict[str, float]:
    """Shares of images, as published, not percent."""
    if metric.metric_fn == "accuracy":
        return {"Accuracy": score.acc1 / 100}
    return {f"Top-{k} Accuracy": {1: score.acc1, 5: score.acc5}[k] / 100 for k in metric.ranks}

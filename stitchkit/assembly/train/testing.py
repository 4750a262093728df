"""Tests of a job's network: its figures of merit on the test images of every data set."""

from __future__ import annotations

import logging
from collections.abc import Callable

from torch import nn

from stitchkit.assembly.config.settings import Metric
from stitchkit.assembly.train.job import Job, engine_settings
from stitchkit.assembly.train.task import Captured, Judged
from stitchkit.engine.precision import create_precision
from stitchkit.measure.evaluate import Score, batches_of, evaluate_stitch

_logger = logging.getLogger(__name__)


class Exam:
    """Tests the network, and its moving average if it has one, on the test images of every task.

    Each image counts once over all ranks.
    """

    def __init__(self, job: Job):
        self._job = job
        settings = engine_settings(job.config)
        self._autocast, _ = create_precision(job.world.device, amp=settings.amp, amp_dtype=settings.amp_dtype)
        networks = {"": job.network}
        if job.trainer is not None and job.trainer.task.average is not None:
            networks["EMA "] = job.trainer.task.average
        self._metrics = [
            (prefix, network, [(metric, _captured(network, metric, n)) for n, metric in enumerate(job.config.metrics)])
            for prefix, network in networks.items()
        ]

    def sit(self, when: str, after_batch: Callable[[], None] = lambda: None) -> tuple[dict[str, float], list[float]]:
        """Figures of every metric on every data set, by the columns of the result, and all losses.

        `when` begins the log line; `after_batch` is called after each batch, equally often on all ranks.
        """
        figures, losses = dict[str, float](), list[float]()
        world, autocast = self._job.world, self._autocast
        for number, task in enumerate(self._job.data):
            name = task.config.name
            for average, network, metrics in self._metrics:
                scores: dict[str | None, Score] = {}  # metrics of the same output share a pass over the images
                for metric, captured in metrics:
                    output, judged = metric.output, Judged(network, number, captured)
                    if output not in scores:
                        batches = batches_of(task.test, world, name, after_batch)
                        scores[output] = evaluate_stitch(judged, None, batches, device=world.device, autocast=autocast)
                        losses.append(scores[output].loss)
                    prefix = f"{average}{output} " if output else average
                    for kind, figure in _figures(metric, scores[output]).items():
                        figures[f"Overall/{name}/Test {prefix}{kind}"] = figure
        _logger.info("%s  %s", when, "  ".join(f"{name} {figure:.4f}" for name, figure in figures.items()))
        return figures, losses


def _captured(network: nn.Module, metric: Metric, number: int) -> Captured | None:
    """The inner output for a metric; None for the network's own output."""
    return None if metric.output is None else Captured(network, metric.output, f"metrics[{number}]", training=False)


def _figures(metric: Metric, found: Score) -> dict[str, float]:
    """Figures as shares of the images, as in the publication, not in percent."""
    if metric.metric_fn == "accuracy":
        return {"Accuracy": found.acc1 / 100}
    return {f"Top-{k} Accuracy": {1: found.acc1, 5: found.acc5}[k] / 100 for k in metric.ranks}

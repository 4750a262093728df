"""Test the network of a job: its figures of merit on the test images of every data set."""

from __future__ import annotations

import logging

from stitchkit.assembly.config.settings import Metric
from stitchkit.assembly.train.data import TaskData
from stitchkit.assembly.train.job import Job
from stitchkit.assembly.train.task import Captured, Judged
from stitchkit.data.loaders import without_padding
from stitchkit.data.unreadable import report
from stitchkit.measure.evaluate import Score, evaluate_stitch
from stitchkit.train.progress import progress

_logger = logging.getLogger(__name__)


class Exam:
    """Tests the network on the test images of every task, each image once over all ranks.

    Args:
        job: The job.

    Raises:
        InputError: If a metric names a submodule that the network has not.
    """

    def __init__(self, job: Job):
        self._job = job
        places = (f"metrics[{number}]" for number in range(len(job.config.metrics)))
        self._metrics = [
            (metric, None if metric.output is None else Captured(job.network, metric.output, place, training=False))
            for metric, place in zip(job.config.metrics, places, strict=True)
        ]

    def sit(self, when: str) -> dict[str, float]:
        """Figures of every metric on every data set, by the names that the result has for them."""
        figures: dict[str, float] = {}
        for number, task in enumerate(self._job.data):
            scores: dict[str | None, Score] = {}
            for metric, captured in self._metrics:
                if metric.output not in scores:
                    scores[metric.output] = self._score(number, task, captured)
                prefix = f"{metric.output} " if metric.output else ""
                for name, figure in _figures(metric, scores[metric.output]).items():
                    figures[f"Overall/{task.config.name}/Test {prefix}{name}"] = figure
        _logger.info("%s  %s", when, "  ".join(f"{name} {figure:.4f}" for name, figure in figures.items()))
        return figures

    def _score(self, number: int, task: TaskData, captured: Captured | None) -> Score:
        world = self._job.world
        batches = progress(
            without_padding(task.test, world), world, task.config.name, unit="batch", total=len(task.test)
        )
        network = Judged(self._job.network, number, captured)
        score = evaluate_stitch(network, None, batches, device=world.device)
        report(task.test.dataset)
        return score


def _figures(metric: Metric, score: Score) -> dict[str, float]:
    """Shares of images, as published, not percent."""
    if metric.metric_fn == "accuracy":
        return {"Accuracy": score.acc1 / 100}
    return {f"Top-{k} Accuracy": {1: score.acc1, 5: score.acc5}[k] / 100 for k in metric.ranks}

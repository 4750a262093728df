"""Tests of a job's network: its figures of merit on the test images of every data set."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from stitchkit.assembly.config.settings import Metric
from stitchkit.assembly.train.columns import AVERAGE, tested_column
from stitchkit.assembly.train.job import Job, engine_settings
from stitchkit.assembly.train.metrics import Measure, create_all_measures
from stitchkit.assembly.train.task import Captured, output_of
from stitchkit.data.batches import Batch
from stitchkit.distributed import sum_over_ranks
from stitchkit.errors import InputError
from stitchkit.measure.evaluate import batches_of
from stitchkit.networks.mode import evaluating

_logger = logging.getLogger(__name__)

_Outputs = Mapping[str | None, Captured | None]
"""The outputs of a network that metrics are of, by name; None is its own."""


class Evaluator:
    """Tests the network, and its moving average if it has one, on the test images of every task.

    Each image counts once over all ranks.
    """

    def __init__(self, job: Job):
        self._job = job
        self._autocast, _ = engine_settings(job.config).precision(job.world.device)
        # Each has its own hooks: the average is a copy, whose submodules those of the network do not hear.
        networks: dict[str, nn.Module] = {"": job.network}
        if job.trainer is not None and job.trainer.task.average is not None:
            networks[AVERAGE] = job.trainer.task.average
        self._networks = [
            (prefix, network, _outputs(network, job.config.metrics)) for prefix, network in networks.items()
        ]
        self._figures = create_all_measures(job.config.metrics)
        # First the loss of each output, by which a network that is not finite is found.
        self._measures: list[tuple[str | None, Measure]] = [
            *((output, partial(F.cross_entropy, reduction="sum")) for output in self._networks[0][2]),
            *((output, measure) for (output, _), measure in self._figures.items()),
        ]

    def evaluate(
        self, when: str, after_batch: Callable[[], None] = lambda: None
    ) -> tuple[dict[str, float], list[float]]:
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
                means = self._means(network, outputs, number, batches)
                losses += means[: len(outputs)]
                for (output, kind), figure in zip(self._figures, means[len(outputs) :], strict=True):
                    figures[tested_column(name, kind, output=output, average=average)] = figure
        said = (f"{name.removeprefix('Overall/')} {_said(name, figure)}" for name, figure in figures.items())
        _logger.info("%s  %s", when, "  ".join(said))
        return figures, losses

    @torch.no_grad()
    def _means(self, network: nn.Module, outputs: _Outputs, number: int, batches: Iterator[Batch]) -> list[float]:
        """Every measure of a task, all from one pass over its images, since the pass is what takes time."""
        sums = torch.zeros(len(self._measures) + 1, dtype=torch.float64, device=self._job.world.device)
        with evaluating(network):
            for images, labels in batches:
                with self._autocast():
                    own = network(images)
                known = labels >= 0  # others are of images that cannot be read
                logits = {  # autocast's have too few digits for a mean of losses
                    name: output_of(own if inner is None else inner.take(), number)[known].float()
                    for name, inner in outputs.items()
                }
                if len(labels[known]):
                    found = [measure(logits[output], labels[known]) for output, measure in self._measures]
                    sums += torch.stack([*(one.double() for one in found), known.sum().double()])
        *totals, count = sum_over_ranks(sums).tolist()
        if not count:
            raise InputError("there is no image to evaluate on; check the validation set")
        return [total / count for total in totals]


def _outputs(network: nn.Module, metrics: tuple[Metric, ...]) -> _Outputs:
    captured: dict[str | None, Captured | None] = {}
    for number, name in enumerate(metric.output for metric in metrics):
        if name not in captured:
            own = None if name is None else Captured(network, name, f"metrics[{number}]", training=False)
            captured[name] = own
    return captured


def _said(name: str, figure: float) -> str:
    """A figure for the log; accuracies are shares of the images in the result, as in the publication."""
    return f"{100 * figure:.2f} %" if name.endswith("Accuracy") else f"{figure:.4g}"

"""Tests of a job's network: its figures of merit on the test images of every data set."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from stitchkit.assembly.train.data import TaskData, dense_recipe
from stitchkit.assembly.train.job import Job, engine_settings
from stitchkit.assembly.train.metrics import (
    AVERAGE,
    Column,
    Measure,
    metrics_of,
    tested_column,
    tested_figures,
)
from stitchkit.assembly.train.task import Captured, output_of
from stitchkit.distributed import World
from stitchkit.engine.settings import Autocast
from stitchkit.measure.answers import BatchScore, Sums
from stitchkit.measure.evaluate import Networks, batches_of, evaluate
from stitchkit.measure.formulas import Bits, Floats
from stitchkit.measure.scores import AnswerScore, Array
from stitchkit.training.judging import JudgedMaps
from stitchkit.training.pair_data import PairLoader

_logger = logging.getLogger(__name__)

_Outputs = Mapping[str, Captured]
"""The inner outputs of a network that metrics are of, by name."""
_Tested = tuple[list[float], list[float]]
"""Figures in the order of their columns, and losses, from one pass over the images of all ranks."""
_IN_PERCENT = ("miou", "pixel_acc", "delta1")  # figures that are shares of 1 in results, as accuracies are there
_Run = Callable[[torch.Tensor], Mapping[str | None, torch.Tensor]]  # images to the outputs for a task, by name


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
        places = {
            metric.output: f"{where}[{number}]"
            for metrics, where in (metrics_of(job.config, task) for task in range(len(job.data)))
            for number, metric in enumerate(metrics)
        }
        self._networks: list[tuple[str, nn.Module, _Outputs]] = []
        for prefix, network in networks.items():
            inner = {key: Captured(network, key, at, training=False) for key, at in places.items() if key is not None}
            self._networks.append((prefix, network, inner))
        self._tests = [self._test(number, data) for number, data in enumerate(job.data)]

    def _test(self, number: int, data: TaskData) -> tuple[list[Column], Callable[..., _Tested]]:
        """The columns of a task, and what computes their figures."""
        figures = tested_figures(self._job.config, number)
        test = _of_pixels if data.config.is_dense else _of_images
        return [*figures], partial(test, data, figures, self._job.world, self._autocast)

    def evaluate(
        self, when: str, after_batch: Callable[[], None] = lambda: None
    ) -> tuple[dict[str, float], list[float]]:
        """Figures of every metric on every data set, by the columns of the result, and all losses.

        `when` begins the log line; `after_batch` is called after each batch, equally often on all ranks.
        """
        figures, losses = dict[str, float](), list[float]()
        for number, (data, (columns, measure)) in enumerate(zip(self._job.data, self._tests, strict=True)):
            if not columns:
                continue  # a pass over the images would keep nothing
            for average, network, outputs in self._networks:
                run = partial(self._run, network, outputs, number)
                means, more = measure(network, run, after_batch)
                losses += more
                for (output, kind), figure in zip(columns, means, strict=True):
                    figures[tested_column(data.config.name, kind, output=output, average=average)] = figure
        if figures:
            # Shares are of 1 in the result, as in the publication.
            words = (
                f"{100 * figure:.2f} %" if name.endswith(("Accuracy", "mIoU", "delta1")) else f"{figure:.4g}"
                for name, figure in figures.items()
            )
            pairs = zip((name.removeprefix("Overall/") for name in figures), words, strict=True)
            _logger.info("%s  %s", when, "  ".join(map(" ".join, pairs)))
        return figures, losses

    def _run(
        self, network: nn.Module, outputs: _Outputs, number: int, images: torch.Tensor
    ) -> dict[str | None, torch.Tensor]:
        with self._autocast():
            own = network(images)
        taken: dict[str | None, Any] = {None: own, **{name: inner.take() for name, inner in outputs.items()}}
        return {name: output_of(value, number) for name, value in taken.items()}


class MeanScore(AnswerScore, BatchScore):
    """Means of measures over the images with a label, each of an output of a network by its name."""

    def __init__(self, measures: Sequence[tuple[str | None, Measure]]):
        self._measures = measures

    @property
    def totals(self) -> int:
        """One of each measure."""
        return len(self._measures)

    def of_batch(self, output: Mapping[str | None, torch.Tensor], targets: torch.Tensor) -> Sums:
        """The sums of the measures for labels `[B]`; label -1 is an image that does not count."""
        known = targets >= 0
        sums = torch.zeros(self.totals, dtype=torch.float64, device=targets.device)
        if known.any():
            # autocast's outputs have too few digits for a mean of losses
            each = [measure(output[name][known].float(), targets[known]) for name, measure in self._measures]
            sums = torch.stack([figure.double() for figure in each])
        return Sums(sums, known[:, None], targets[:, None])

    def about(self) -> dict[str, object]:
        """No file has this score."""
        return {}

    def row(self, own: Array, truth: Array, seen: Bits, totals: Floats | None) -> dict[str, float]:  # noqa: ARG002
        """The mean of each measure, by its number."""
        assert totals is not None, "it was evaluated"
        return {str(number): total / int(seen.sum()) for number, total in enumerate(totals.tolist())}


def _of_images(
    data: TaskData, measures: Mapping[Column, Measure], world: World, _: Autocast, network: nn.Module, run: _Run,
    after_batch: Callable[[], None],
) -> _Tested:  # fmt: skip
    """A test on whole images, whose outputs `run` gives in the precision of the job."""
    assert not isinstance(data.test, PairLoader), "it is of classification"
    outputs = dict.fromkeys(output for output, _ in measures)
    # First the loss of each output, which shows whether the network is finite.
    losses: dict[str | None, Measure] = dict.fromkeys(outputs, partial(F.cross_entropy, reduction="sum"))
    score = MeanScore([*losses.items(), *((output, measure) for (output, _), measure in measures.items())])
    networks = Networks(network, [0], lambda images: [(0, run(images))])
    loader, name = data.test, data.config.name
    images = evaluate(networks, lambda _: batches_of(loader, world, name, after_batch), score, device=world.device)
    means = [*images.figures(0).values()]
    return means[len(losses) :], means[: len(losses)]


def _of_pixels(
    data: TaskData, figures: Mapping[Column, str], world: World, autocast: Autocast, network: nn.Module, run: _Run,
    after_batch: Callable[[], None],
) -> _Tested:  # fmt: skip
    """A test on the images of a dense task, each at its own size, in windows of the size of the network's input."""
    task, loader, classes = data.config, data.test, len(data.classes)
    assert isinstance(loader, PairLoader), "it is of a dense task"
    outputs = [*dict.fromkeys(output for output, _ in figures)]

    def run_all(portions: Sequence[torch.Tensor]) -> Iterator[tuple[int, torch.Tensor]]:
        parts = [run(portion) for portion in portions]
        return ((number, torch.cat([part[name] for part in parts])) for number, name in enumerate(outputs))

    names = {  # in messages
        number: f"{'the network' if output is None else repr(output)} for '{task.name}'"
        for number, output in enumerate(outputs)
    }
    judged = JudgedMaps(loader, dense_recipe(task), classes, task.data_preprocessing.size, world, autocast)
    images = judged.evaluate(judged.networks(network, names, run_all), task.name, after_batch)
    values = [(name, images.figures(outputs.index(output))[name]) for (output, _), name in figures.items()]
    return [value / 100 if name in _IN_PERCENT else value for name, value in values], []

"""Tests of a job's network: its figures of merit on the test images of every data set."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from stitchkit.assembly.config.settings import TaskConfig
from stitchkit.assembly.train.data import TaskData, dense_recipe
from stitchkit.assembly.train.job import Job, engine_settings
from stitchkit.assembly.train.metrics import (
    AVERAGE,
    Column,
    Measure,
    create_all_measures,
    dense_figures,
    metrics_of,
    tested_column,
)
from stitchkit.assembly.train.task import Captured, output_of
from stitchkit.distributed import World, sum_over_ranks
from stitchkit.engine.settings import Autocast
from stitchkit.errors import InputError
from stitchkit.measure.evaluate import batches_of
from stitchkit.networks.mode import evaluating
from stitchkit.training.dense.data import PairLoader
from stitchkit.training.dense.judging import DenseJudge

_logger = logging.getLogger(__name__)

_Outputs = Mapping[str | None, Captured | None]
"""The outputs of a network that metrics are of, by name; None is its own."""
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
            own = {
                key: key if key is None else Captured(network, key, at, training=False) for key, at in places.items()
            }
            self._networks.append((prefix, network, own))
        self._tests = [self._test(number, data) for number, data in enumerate(job.data)]

    def _test(self, number: int, data: TaskData) -> ImageTest | PixelTest:
        metrics, where = metrics_of(self._job.config, number)
        if isinstance(data.test, PairLoader):
            figures = dense_figures(data.config.task, metrics, where)
            return PixelTest(data.config, data.test, len(data.classes), figures, self._autocast)
        return ImageTest(data, create_all_measures(metrics, where), self._job.world)

    def evaluate(
        self, when: str, after_batch: Callable[[], None] = lambda: None
    ) -> tuple[dict[str, float], list[float]]:
        """Figures of every metric on every data set, by the columns of the result, and all losses.

        `when` begins the log line; `after_batch` is called after each batch, equally often on all ranks.
        """
        figures, losses = dict[str, float](), list[float]()
        for number, (data, test) in enumerate(zip(self._job.data, self._tests, strict=True)):
            if not test.columns:
                continue  # a pass over the images would keep nothing
            for average, network, outputs in self._networks:
                run = partial(self._run, network, outputs, number)
                means, more = test.measure(network, run, after_batch)
                losses += more
                for (output, kind), figure in zip(test.columns, means, strict=True):
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
        taken = {name: own if inner is None else inner.take() for name, inner in outputs.items()}
        return {name: output_of(value, number) for name, value in taken.items()}


class ImageTest:
    """Tests a network on the images of a task of classification, each once over all ranks."""

    def __init__(self, data: TaskData, figures: Mapping[Column, Measure], world: World):
        self.columns = [*figures]
        self._data, self._world = data, world
        outputs = dict.fromkeys(output for output, _ in figures)
        self._num_losses = len(outputs)
        # First the loss of each output, which shows whether the network is finite.
        self._measures: list[tuple[str | None, Measure]] = [
            *((output, partial(F.cross_entropy, reduction="sum")) for output in outputs),
            *((output, measure) for (output, _), measure in figures.items()),
        ]

    @torch.no_grad()
    def measure(
        self, network: nn.Module, run: _Run, after_batch: Callable[[], None]
    ) -> tuple[list[float], list[float]]:
        """The figures in the order of the columns, and the losses, from one pass over the images of all ranks."""
        assert not isinstance(self._data.test, PairLoader), "it is of classification"
        batches = batches_of(self._data.test, self._world, self._data.config.name, after_batch)
        sums = torch.zeros(len(self._measures) + 1, dtype=torch.float64, device=self._world.device)
        with evaluating(network):
            for images, labels in batches:
                outputs = run(images)
                known = labels >= 0  # others are of images that cannot be read
                if len(labels[known]):
                    # autocast's outputs have too few digits for a mean of losses
                    each = [measure(outputs[name][known].float(), labels[known]) for name, measure in self._measures]
                    sums += torch.stack([*(figure.double() for figure in each), known.sum().double()])
        *totals, count = sum_over_ranks(sums).tolist()
        if not count:
            raise InputError("there is no image to evaluate on; check the validation set")
        means = [total / count for total in totals]
        return means[self._num_losses :], means[: self._num_losses]


class PixelTest:
    """Tests a network on the images of a dense task, each at its own size, in windows of the size of its input."""

    def __init__(
        self, task: TaskConfig, loader: PairLoader, num_classes: int, figures: Mapping[Column, str], autocast: Autocast
    ):
        self.columns = [*figures]
        self._task = task.name
        self._loader, self._figures = loader, [*figures.items()]
        self._outputs = [*dict.fromkeys(output for output, _ in figures)]
        self._judge = DenseJudge(
            dense_recipe(task), num_classes, task.data_preprocessing.size, autocast, loader.batch_size
        )

    def measure(
        self,
        network: nn.Module,
        run: Callable[[torch.Tensor], Mapping[str | None, torch.Tensor]],
        after_batch: Callable[[], None],
    ) -> tuple[list[float], list[float]]:
        """The figures in the order of the columns, and no losses, over the images of all ranks."""

        def outputs(portions: Sequence[torch.Tensor]) -> Iterator[tuple[int, torch.Tensor]]:
            parts = [run(portion) for portion in portions]
            return ((number, torch.cat([part[name] for part in parts])) for number, name in enumerate(self._outputs))

        batches = self._loader.batches(after_batch=after_batch)
        names = {  # in messages
            number: f"{'the network' if output is None else repr(output)} for '{self._task}'"
            for number, output in enumerate(self._outputs)
        }
        sums = self._judge.over_ranks(self._judge.sums(network, outputs, [*names], batches, names))
        each = [sums.figures(number) for number in range(len(self._outputs))]
        figures = [(name, each[self._outputs.index(output)][name]) for (output, _), name in self._figures]
        return [value / 100 if name in _IN_PERCENT else value for name, value in figures], []

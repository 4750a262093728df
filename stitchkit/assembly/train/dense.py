"""Dense tasks of a job, which predict at each pixel: their data, losses and tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn

from stitchkit.assembly.config.settings import TaskConfig
from stitchkit.assembly.train.metrics import Column
from stitchkit.assembly.train.task import PixelLoss
from stitchkit.data.dense.pairs import ImagePairs, open_pairs
from stitchkit.data.dense.transforms import evaluation_transform, training_transform
from stitchkit.data.labelled_images import numbered
from stitchkit.engine.settings import Autocast
from stitchkit.settings.dense_recipe import DenseRecipe
from stitchkit.training.dense.data import PairLoader
from stitchkit.training.dense.judging import DenseJudge
from stitchkit.training.dense.task import loss_of

_IN_PERCENT = ("miou", "pixel_acc", "delta1")
"""Figures that are shares of 1 in the result of a job, as accuracies are there."""


def pixel_loss(task: TaskConfig) -> PixelLoss:
    """The loss of a dense task."""
    return PixelLoss(loss_of(_settings(task)))


def _settings(task: TaskConfig) -> DenseRecipe:
    return DenseRecipe(task=task.task, max_depth=task.max_depth)


def open_task_pairs(task: TaskConfig, root: Path | None, *, download: bool = False) -> tuple[ImagePairs, ImagePairs]:
    """The images of a dense task with their masks or depth maps, to train and to test."""
    is_folder = not task.dataset.lower().startswith("hfds/")
    place = Path(root or "", task.dataset).expanduser() if is_folder else task.dataset
    count = (task.num_classes or 0) if task.task == "segmentation" else 0
    train = open_pairs(place, "train", task.task, num_classes=count, download=download)
    test = open_pairs(
        place, task.val_split or "validation", task.task, num_classes=train.num_classes, download=download
    )
    how = task.data_preprocessing
    mean, std = how.mean or IMAGENET_DEFAULT_MEAN, how.std or IMAGENET_DEFAULT_STD
    colours = {"mean": _per_channel(mean), "std": _per_channel(std)}
    is_augmented = bool(task.augmentation)
    train.transform = training_transform(
        task.task, how.size, **colours, hflip=0.5 if is_augmented else 0.0, color_jitter=is_augmented,
        scale=(0.5, 2.0) if is_augmented else (1.0, 1.0),
    )  # fmt: skip
    test.transform = evaluation_transform(task.task, **colours)
    return train, test


def _per_channel(values: tuple[float, ...]) -> tuple[float, ...]:
    return values * 3 if len(values) == 1 else values


def outputs_of(pairs: ImagePairs) -> tuple[str, ...]:
    """The names of the values at a position: the classes, or depth."""
    return ("depth",) if pairs.task == "depth" else pairs.classes or numbered(pairs.num_classes)


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
            _settings(task), num_classes, task.data_preprocessing.size, autocast, loader.batch_size
        )

    def measure(
        self,
        network: nn.Module,
        run: Callable[[torch.Tensor], Mapping[str | None, torch.Tensor]],
        after_batch: Callable[[], None],
    ) -> tuple[list[float], list[float]]:
        """The figures in the order of the columns, and no losses, over the images of all ranks."""

        def outputs(portions: Sequence[torch.Tensor]) -> Iterator[tuple[int, torch.Tensor]]:
            found = [run(part) for part in portions]
            return ((number, torch.cat([each[name] for each in found])) for number, name in enumerate(self._outputs))

        batches = self._loader.batches(after_batch=after_batch)
        names = {number: self._name(output) for number, output in enumerate(self._outputs)}
        sums = self._judge.over_ranks(self._judge.sums(network, outputs, [*names], batches, names))
        each = [sums.figures(number) for number in range(len(self._outputs))]
        found = [(name, each[self._outputs.index(output)][name]) for (output, _), name in self._figures]
        return [value / 100 if name in _IN_PERCENT else value for name, value in found], []

    def _name(self, output: str | None) -> str:
        """What messages call an output of the network; None is its own."""
        return f"{'the network' if output is None else repr(output)} for '{self._task}'"

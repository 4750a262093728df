"""The batches of a job: the data sets of all its tasks, shared out to ranks."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset, Subset

from stitchkit.assembly.config.job import JobConfig
from stitchkit.assembly.config.preprocessing import create_transform
from stitchkit.assembly.config.settings import TaskConfig
from stitchkit.assembly.train.task import Labels
from stitchkit.data.loaders import Batch, DirectLoader
from stitchkit.data.sources import Split, open_dataset
from stitchkit.distributed import World
from stitchkit.errors import InputError


@dataclass(frozen=True)
class TaskData:
    """The data of a task.

    Args:
        config: Its settings.
        classes: Class names in the order of their numbers.
        train: Its training batches.
        test: Its test batches; iterate through `without_padding`.
    """

    config: TaskConfig
    classes: tuple[str, ...]
    train: DirectLoader
    test: DirectLoader


def open_data(config: JobConfig, world: World) -> list[TaskData]:
    """Open the data sets of a job.

    Raises:
        InputError: If one cannot be opened, has no images, or does not know its classes.
    """
    train = config.train_config
    places = [f"train_config.tasks[{number}]" for number in range(len(train.tasks))] or ["train_config"]
    return [_open(config, task, place, world) for task, place in zip(train.resolved_tasks, places, strict=True)]


def _open(config: JobConfig, task: TaskConfig, place: str, world: World) -> TaskData:
    loaders: dict[Split, DirectLoader] = {}
    classes: tuple[str, ...] = ()
    splits: tuple[Split, Split] = ("train", "test")
    for split in splits:
        transform = create_transform(task, place, training=split == "train")
        root = None if config.data_path is None else Path(config.data_path).expanduser()
        dataset = open_dataset(task.dataset, root=root, split=split, transform=transform)
        if isinstance(dataset, IterableDataset):
            raise InputError(f"{place}.dataset: '{task.dataset}' is streamed; a job needs one that can be counted")
        known: tuple[str, ...] = tuple(dataset.classes)  # type: ignore[attr-defined]
        if not known:
            raise InputError(
                f"{place}.dataset: the classes of '{task.dataset}' are not known; a job needs labels that are names of "
                "classes or whole numbers from 0, or an image folder with one folder a class"
            )
        classes = max(classes, known, key=len)  # numbers are counted, and a split may lack the last class
        loaders[split] = _loader(_some(dataset, config, task), config, task, world, training=split == "train")
    return TaskData(task, classes, loaders["train"], loaders["test"])


def _some(dataset: Dataset[Any], config: JobConfig, task: TaskConfig) -> Dataset[Any]:
    """The data set, or the random part of it that `max_batches` asks for; the same on all ranks and when resumed."""
    train, size = config.train_config, len(dataset)  # type: ignore[arg-type]
    if not size:
        raise InputError(f"data set '{task.dataset}' has no images; check its folder")
    if train.max_batches is None or train.max_batches * task.batch_size >= size:
        return dataset
    order = torch.randperm(size, generator=torch.Generator().manual_seed(train.seed))
    return Subset(dataset, order[: train.max_batches * task.batch_size].tolist())


def _loader(
    dataset: Dataset[Any], config: JobConfig, task: TaskConfig, world: World, *, training: bool
) -> DirectLoader:
    sampler: DistributedSampler[Any] = DistributedSampler(
        dataset, world.size, world.rank, shuffle=training, seed=config.train_config.seed
    )
    # A batch of one image has no batch statistics.
    lone = len(sampler) > task.batch_size and len(sampler) % task.batch_size == 1
    loader = DataLoader(
        dataset, batch_size=task.batch_size, sampler=sampler, num_workers=min(config.workers, usable_cores()),
        drop_last=training and lone, pin_memory=world.device.type == "cuda",
    )  # fmt: skip
    return DirectLoader(loader, device=world.device, dtype=torch.float32)


def usable_cores() -> int:
    """Cores that this process may use: more loader processes than these only wait for one another."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class TrainingLoader:
    """The batches of a training step: one of each task; it measures how long they are waited for.

    An epoch ends with the longest of the data sets; the others begin again.

    Args:
        loaders: Of each task.
    """

    def __init__(self, loaders: Sequence[DirectLoader]):
        self._loaders = loaders
        self.dataset = None
        self.sampler = self  # the trainer tells samplers of an epoch
        self.waited = 0.0
        self.images = 0

    def __len__(self) -> int:
        return max(len(loader) for loader in self._loaders)

    def set_epoch(self, epoch: int) -> None:
        """Shuffle anew."""
        self.waited, self.images = 0.0, 0
        for loader in self._loaders:
            loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]

    def __iter__(self) -> Iterator[tuple[torch.Tensor, Labels]]:
        ways = [_again(loader) for loader in self._loaders]
        for _ in range(len(self)):
            start = time.perf_counter()
            batches = [next(way) for way in ways]
            self.waited += time.perf_counter() - start
            images = torch.cat([images for images, _ in batches]) if len(batches) > 1 else batches[0][0]
            self.images += len(images)
            yield images, tuple(labels for _, labels in batches)


def _again(loader: DirectLoader) -> Iterator[Batch]:
    while True:
        yield from loader

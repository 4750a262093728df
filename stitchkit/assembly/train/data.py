"""The batches of a job: the data sets of all its tasks, distributed over ranks."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset, Subset

from stitchkit.assembly.config.job import JobConfig
from stitchkit.assembly.config.settings import TaskConfig
from stitchkit.assembly.train.preprocessing import create_transform, data_config
from stitchkit.assembly.train.task import Labels
from stitchkit.data.batches import Batch, DirectLoader
from stitchkit.data.decoding import Decoding
from stitchkit.data.dense.pairs import ImagePairs, open_pairs
from stitchkit.data.dense.transforms import evaluation_transform, training_transform
from stitchkit.data.labelled_images import numbered
from stitchkit.data.loader_processes import usable_cores, workers_for
from stitchkit.data.open_dataset import agreed_classes, download, open_dataset
from stitchkit.data.source import Source
from stitchkit.data.unreadable import CheckedImages
from stitchkit.distributed import World
from stitchkit.errors import InputError, prefixed
from stitchkit.settings.dense_recipe import DenseRecipe
from stitchkit.training.pair_data import PairLoader


@dataclass(frozen=True)
class TaskData:
    """The data of a task; `classes` are in the order of their numbers, `test` is read through `without_padding`.

    Depth counts as one class. Dense tasks test images at their own sizes.
    """

    config: TaskConfig
    classes: tuple[str, ...]
    train: DirectLoader
    test: DirectLoader | PairLoader


def download_data(configs: Iterable[JobConfig]) -> None:
    """Download the data sets of jobs that are missing; only one process calls this."""
    every = [(_root(config), task) for config in configs for task in config.train_config.resolved_tasks]
    for root, task in {(root, task.dataset, task.task): (root, task) for root, task in every}.values():
        if task.is_dense:
            open_task_pairs(task, root, download=True)
        else:
            download(Source(task.dataset, root))


def open_data(config: JobConfig, world: World) -> list[TaskData]:
    """Open the data sets of a job."""
    return [open_task(config, number, world) for number in range(len(config.train_config.places))]


def open_task(config: JobConfig, number: int, world: World) -> TaskData:
    """Open the data set of one task of a job."""
    task, where = config.train_config.resolved_tasks[number], config.train_config.places[number]
    decoding = Decoding.of(data_config(task))
    if task.is_dense:
        with prefixed(f"{where}.dataset: "):
            pairs, judged = open_task_pairs(task, _root(config))
            for split in (pairs, judged):
                split.decoding = decoding
                split.check_headers()
                split.check_values()
        loader = _loader(pairs, config, task, world, training=True)
        tested: Any = _some(judged, config.train_config.seed, task)
        workers = min(config.workers, usable_cores())
        return TaskData(task, pairs.outputs, loader, PairLoader(tested, task.batch_size, workers, world))
    options = (("batch_size", task.batch_size), ("seed", config.train_config.seed))
    source = Source(task.dataset, _root(config), options=options)
    with prefixed(f"{where}.dataset: "):
        train = open_dataset(source, "train", is_training=True, num_samples=task.train_num_samples)
        test = open_dataset(source, task.val_split or "validation", num_samples=task.val_num_samples)
        known = agreed_classes(train, test)
    classes = _classes(known, task, where)
    loaders = []
    for opened, training in ((train, True), (test, False)):
        opened.decoding = decoding
        images: Any = opened
        if not isinstance(opened, IterableDataset):
            images = CheckedImages(opened, num_classes=len(classes), is_training=training)
        images.transform = create_transform(task, where, training=training)
        loaders.append(_loader(images, config, task, world, training=training))
    return TaskData(task, classes, *loaders)


def dense_recipe(task: TaskConfig) -> DenseRecipe:
    """The settings of a dense task as an SN-Net has them."""
    return DenseRecipe(task=task.task, max_depth=task.max_depth)


def open_task_pairs(task: TaskConfig, root: Path | None, *, download: bool = False) -> tuple[ImagePairs, ImagePairs]:
    """The images of a dense task with their masks or depth maps, to train and to test."""
    is_hub = task.dataset.lower().startswith("hfds/")
    source = task.dataset if is_hub else Path(root or "", task.dataset).expanduser()
    train = open_pairs(source, "train", task.task, num_classes=task.num_classes or 0, download=download)
    split = task.val_split or "validation"
    test = open_pairs(source, split, task.task, num_classes=train.num_classes, download=download)
    how, is_augmented = task.data_preprocessing, bool(task.augmentation)
    each = {"mean": how.mean or IMAGENET_DEFAULT_MEAN, "std": how.std or IMAGENET_DEFAULT_STD}
    colours: dict[str, Any] = {key: values * 3 if len(values) == 1 else values for key, values in each.items()}
    train.transform = training_transform(
        task.task, how.size, **colours, hflip=0.5 if is_augmented else 0.0, color_jitter=is_augmented,
        scale=(0.5, 2.0) if is_augmented else (1.0, 1.0),
    )  # fmt: skip
    test.transform = evaluation_transform(task.task, **colours)
    return train, test


def _root(config: JobConfig) -> Path | None:
    return None if config.data_path is None else Path(config.data_path).expanduser()


def _classes(known: tuple[str, ...], task: TaskConfig, where: str) -> tuple[str, ...]:
    """Class names of a data set, or numbers if `num_classes` is set."""
    if not known and task.num_classes is None:
        raise InputError(
            f"{where}.dataset: the classes of '{task.dataset}' are not known; a job needs labels that are class "
            "names or whole numbers from 0, an image folder with one folder per class, or num_classes"
        )
    if known and task.num_classes not in (None, len(known)):
        raise InputError(
            f"{where}.num_classes is {task.num_classes}, but '{task.dataset}' has {len(known)} classes; remove it"
        )
    return known or numbered(task.num_classes or 0)


def _loader(dataset: Any, config: JobConfig, task: TaskConfig, world: World, *, training: bool) -> DirectLoader:
    settings, most = config.train_config, None
    workers = workers_for(dataset, min(config.workers, usable_cores()), world)
    options: dict[str, Any] = {"num_workers": workers, "pin_memory": world.device.type == "cuda"}
    if isinstance(dataset, IterableDataset):
        dataset.set_loader_cfg(num_workers=workers)  # type: ignore[attr-defined] # timm's method: its length depends on it
        most = task.max_batches and -(-task.max_batches // world.size)
    else:
        images = _some(dataset, settings.seed, task)
        sampler: DistributedSampler[Any] = DistributedSampler(
            images, world.size, world.rank, shuffle=training, seed=settings.seed
        )
        # Batch norms reject a batch of one image, which has no statistics.
        lone = len(sampler) > task.batch_size and len(sampler) % task.batch_size == 1
        dataset, options = images, {**options, "sampler": sampler, "drop_last": training and lone}
    loader: DataLoader[Any] = DataLoader(dataset, batch_size=task.batch_size, **options)
    return DirectLoader(loader, device=world.device, dtype=torch.float32, max_batches=most)


def _some(dataset: CheckedImages | ImagePairs, seed: int, task: TaskConfig) -> Dataset[Any]:
    """The data set, or `max_batches` random batches of it, the same on all ranks and after a resume."""
    size = len(dataset)
    if not size:
        raise InputError(f"data set '{task.dataset}' has no images; check its folder")
    if task.max_batches is None or task.max_batches * task.batch_size >= size:
        return dataset
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    return Subset(dataset, order[: task.max_batches * task.batch_size].tolist())


class TrainingLoader:
    """The batches of training steps, one from each task's loader; it also measures the time spent waiting for them.

    An epoch ends with the longest data set; the others start over.
    """

    def __init__(self, loaders: Sequence[DirectLoader]):
        self.loaders = loaders
        self.waited = 0.0
        self.images = 0

    def __len__(self) -> int:
        return max(len(loader) for loader in self.loaders)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, Labels]]:
        self.waited, self.images = 0.0, 0
        ways = [_cycle(loader) for loader in self.loaders]
        for _ in range(len(self)):
            start = time.perf_counter()
            batches = [next(way) for way in ways]
            self.waited += time.perf_counter() - start
            images = torch.cat([images for images, _ in batches]) if len(batches) > 1 else batches[0][0]
            self.images += len(images)
            yield images, tuple(labels for _, labels in batches)


def _cycle(loader: DirectLoader) -> Iterator[Batch]:
    is_empty = False
    while not is_empty:
        is_empty = True
        for batch in loader:
            is_empty = False
            yield batch
    raise InputError("a data set for training has no image that can be read; check its files")

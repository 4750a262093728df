"""Datasets and loaders, all of them timm's, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.data import FastCollateMixup, create_dataset, create_loader, resolve_data_config
from timm.utils.misc import natural_key
from torch.utils.data import Dataset, IterableDataset

from stitchkit.distributed import World
from stitchkit.errors import InputError
from stitchkit.train.recipe import Recipe

Batch = tuple[torch.Tensor, torch.Tensor]
Loader = Any
"""A timm loader: iterates over batches, has a length, a sampler and a dataset."""


@dataclass(frozen=True)
class Datasets:
    """The splits of a dataset.

    Args:
        train: The training split; None when there is nothing to train.
        validation: The validation split.
        classes: Class names in the order of their numbers; empty where the reader does not know them.
    """

    train: Dataset[Any] | None
    validation: Dataset[Any]
    classes: tuple[str, ...]


def open_datasets(recipe: Recipe) -> Datasets:
    """Open the splits that a run needs.

    Raises:
        InputError: If the folder or a split is missing or empty, or the splits have different classes.
    """
    data = recipe.data
    if not data.dataset and not Path(data.data_dir or "").exists():
        raise InputError(f"data folder '{data.data_dir}' does not exist; give a folder with {_layout(recipe)}")
    train = None if recipe.run.eval else _open(recipe, data.train_split, is_training=True)
    validation = _open(recipe, data.val_split, is_training=False)
    found = _classes(validation)
    classes = _classes(train) or _train_folders(recipe, found) or found
    if found and set(found) != set(classes):
        raise InputError(f"{_difference(classes, found, recipe)}; labels would not agree, so make the folders equal")
    return Datasets(train, validation, classes)


def _difference(classes: Sequence[str], found: Sequence[str], recipe: Recipe) -> str:
    """Which class folders only one of the splits has."""
    parts = []
    for verb, names in (("lacks", set(classes) - set(found)), ("alone has", set(found) - set(classes))):
        if names:
            shown = ", ".join(sorted(names)[:5]) + (", ..." if len(names) > 5 else "")
            parts.append(f"{verb} {len(names)} class folders: {shown}")
    return f"the {recipe.data.val_split} split of '{recipe.data.data_dir}' {' and '.join(parts)}"


def _layout(recipe: Recipe) -> str:
    return f"{recipe.data.train_split}/ and {recipe.data.val_split}/, one folder a class in each"


def _open(recipe: Recipe, split: str, *, is_training: bool) -> Dataset[Any]:
    data = recipe.data
    options: dict[str, Any] = {
        key: value for key in ("input_key", "target_key") if (value := getattr(data, key)) is not None
    }
    try:
        dataset: Dataset[Any] = create_dataset(
            data.dataset,
            root=data.data_dir,
            split=split,
            is_training=is_training,
            class_map=data.class_map,
            download=data.dataset_download,
            batch_size=data.batch_size,
            seed=recipe.run.seed,
            num_samples=data.train_num_samples if is_training else data.val_num_samples,
            **options,
        )
    except Exception as error:  # the readers of many libraries raise many kinds
        place = f"'{data.dataset or data.data_dir}', split '{split}'"
        raise InputError(f"dataset {place} cannot be opened: {type(error).__name__}: {error}") from error
    if is_training and recipe.augment.aug_repeats and isinstance(dataset, IterableDataset):
        raise InputError("--aug-repeats is not for streamed datasets; set it to 0")
    # Where a folder has no such split, timm takes the whole folder for it.
    root = getattr(getattr(dataset, "reader", None), "root", None)
    if not data.dataset and root is not None and Path(root) == Path(data.data_dir or "") and Path(root).is_dir():
        raise InputError(f"data folder '{data.data_dir}' has no {split}/ folder; it needs {_layout(recipe)}")
    return dataset


def _classes(dataset: Dataset[Any] | None) -> tuple[str, ...]:
    """Class names in the order of their numbers, where the reader of a folder knows them."""
    numbers = getattr(getattr(dataset, "reader", None), "class_to_idx", None) or {}
    return tuple(sorted(numbers, key=numbers.__getitem__))


def _train_folders(recipe: Recipe, found: Sequence[str]) -> tuple[str, ...]:
    """Class folders of the training split, by their names alone: an evaluation does not read through all images.

    Empty where there is no such folder, or where classes are not its direct children.
    """
    folder = Path(recipe.data.data_dir or "") / recipe.data.train_split
    if recipe.data.dataset or recipe.data.class_map or not folder.is_dir():
        return ()
    names = {path.name for path in folder.iterdir() if path.is_dir()}
    return tuple(sorted(names, key=natural_key)) if names & set(found) else ()


@dataclass(frozen=True)
class Loaders:
    """The loaders of a run.

    Args:
        train: Augmented training batches; None when there is nothing to train.
        validation: Prepared validation batches; iterate through `without_padding`.
        mean: Mean of the channels that images are normalised with.
        std: Their standard deviation.
    """

    train: Loader | None
    validation: Loader
    mean: tuple[float, ...]
    std: tuple[float, ...]


def create_loaders(
    datasets: Datasets, recipe: Recipe, world: World, *, input_size: tuple[int, ...], model_config: Mapping[str, Any],
    num_classes: int,
) -> Loaders:  # fmt: skip
    """Loaders over the splits, each rank with its own part.

    Workers start anew each epoch, so that an epoch depends on nothing but its seed (law 8).

    Args:
        datasets: The opened splits.
        recipe: The settings.
        world: This process among all.
        input_size: Size of an input image, `(C, H, W)`.
        model_config: timm's `pretrained_cfg`: mean, standard deviation, crop and interpolation unless overridden.
        num_classes: Number of classes, for mixed labels.

    Raises:
        InputError: If timm refuses a setting, or the training split has less than one batch for each rank.
    """
    data = recipe.data
    overrides = {key: getattr(data, key) for key in ("mean", "std", "interpolation", "crop_pct") if getattr(data, key)}
    try:
        prepared = resolve_data_config(overrides | {"input_size": input_size}, pretrained_cfg=model_config)
        shared = {
            "input_size": prepared["input_size"],
            "mean": prepared["mean"],
            "std": prepared["std"],
            "num_workers": data.workers,
            "distributed": True,
            "pin_memory": data.pin_mem,
            "device": world.device,
            "persistent_workers": False,
        }
        validation = create_loader(
            datasets.validation,
            batch_size=data.validation_batch_size or data.batch_size,
            interpolation=prepared["interpolation"],
            crop_pct=prepared["crop_pct"],
            crop_mode=prepared["crop_mode"],
            **shared,
        )
        train = None
        if datasets.train is not None:
            train = _create_train_loader(datasets.train, recipe, prepared["interpolation"], num_classes, shared)
    except Exception as error:  # timm parses policies and names of interpolations as it goes
        raise InputError(f"timm cannot prepare images as asked: {type(error).__name__}: {error}") from error
    if train is not None and len(train) < recipe.optim.grad_accum_steps:
        raise InputError(
            f"the training split has {len(train.dataset)} images, less than one step of {data.batch_size} x "
            f"{world.size} ranks x {recipe.optim.grad_accum_steps} batches; lower --batch-size"
        )
    return Loaders(train, validation, tuple(prepared["mean"]), tuple(prepared["std"]))


def _create_train_loader(
    dataset: Dataset[Any], recipe: Recipe, interpolation: str, num_classes: int, shared: Mapping[str, Any]
) -> Loader:
    augment = recipe.augment
    collate = None
    if augment.mixes:
        collate = FastCollateMixup(
            mixup_alpha=augment.mixup,
            cutmix_alpha=augment.cutmix,
            cutmix_minmax=augment.cutmix_minmax,
            prob=augment.mixup_prob,
            switch_prob=augment.mixup_switch_prob,
            mode=augment.mixup_mode,
            label_smoothing=augment.smoothing,
            num_classes=num_classes,
        )
    return create_loader(
        dataset,
        batch_size=recipe.data.batch_size,
        is_training=True,
        no_aug=augment.no_aug,
        train_crop_mode=augment.train_crop_mode,
        scale=tuple(augment.scale),
        ratio=tuple(augment.ratio),
        hflip=augment.hflip,
        vflip=augment.vflip,
        color_jitter=augment.color_jitter,
        auto_augment=augment.aa,
        num_aug_repeats=augment.aug_repeats,
        re_prob=augment.reprob,
        re_mode=augment.remode,
        re_count=augment.recount,
        interpolation=interpolation if augment.no_aug else augment.train_interpolation,
        collate_fn=collate,
        **shared,
    )


def without_padding(loader: Loader, world: World) -> Iterator[Batch]:
    """The batches of this rank without the images that timm's sampler adds to make ranks even.

    Over all ranks every image comes exactly once. Streamed datasets have no such padding; their readers share the
    images out.
    """
    if isinstance(loader.dataset, IterableDataset):
        yield from loader
        return
    left = len(range(world.rank, len(loader.dataset), world.size))
    for images, labels in loader:
        if left > 0:
            yield images[:left], labels[:left]
        left -= len(images)


def some_images(loader: Iterable[Batch], count: int) -> Iterator[torch.Tensor]:
    """The first `count` images of a loader, in batches."""
    for images, _ in loader:
        yield images[:count]
        count -= len(images)
        if count <= 0:
            return

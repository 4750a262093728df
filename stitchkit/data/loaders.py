"""Loaders, timm's, and the ways to go through them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch
from timm.data import AugMixDataset, FastCollateMixup, Mixup, create_loader, resolve_data_config
from timm.data.loader import adapt_to_chs
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from stitchkit.data.loader_processes import outlive_signals
from stitchkit.data.splits import Datasets
from stitchkit.data.unreadable import checked
from stitchkit.distributed import World
from stitchkit.errors import InputError, one_line
from stitchkit.settings.recipe import Recipe, flag_of

Batch = tuple[torch.Tensor, torch.Tensor]
Loader = Any
"""A timm loader: iterates over batches, has a length, a sampler and a dataset."""


@dataclass(frozen=True)
class Loaders:
    """The loaders of a run.

    Args:
        train: Augmented training batches, or for `--recalibrate-bn` some that are prepared as for evaluation.
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
    try:
        prepared = preparation(recipe, input_size, model_config)
        shared = _for_both_splits(recipe, world, prepared)
        for_evaluation = shared | {key: prepared[key] for key in ("interpolation", "crop_pct", "crop_mode")}
        for_evaluation["batch_size"] = data.validation_batch_size or data.batch_size
        options = {"num_classes": num_classes, "limit": data.max_unreadable, "flag": flag_of("max_unreadable")}
        images = checked(datasets.validation, is_training=False, **options)
        validation = create_loader(images, **for_evaluation)
        train, mix = None, None
        if datasets.train is not None:
            images = checked(datasets.train, is_training=True, **options)
        if datasets.train is not None and recipe.run.eval:
            train = _create_calibration_loader(images, recipe, world, for_evaluation)
        elif datasets.train is not None:
            mix = _mixing(recipe, num_classes)
            train = _create_train_loader(images, recipe, prepared["interpolation"], mix, shared)
    except InputError:
        raise
    except Exception as error:  # timm parses policies and names of interpolations as it goes
        raise InputError(f"timm cannot prepare images as asked: {one_line(error)}") from error
    if train is not None and len(train) < (1 if recipe.run.eval else recipe.optim.grad_accum_steps):
        raise InputError(
            f"the training split has {len(train.dataset)} images, less than one step of {data.batch_size} x "
            f"{world.size} ranks x {recipe.optim.grad_accum_steps} batches; lower --batch-size"
        )
    if data.no_prefetcher:
        direct = partial(DirectLoader, device=world.device, dtype=weights_dtype(recipe))
        validation, train = direct(validation), train and direct(train, mix=mix)
    else:
        for loader in (validation, train):
            if loader is not None:
                outlive_signals(loader)
    return Loaders(train, validation, tuple(prepared["mean"]), tuple(prepared["std"]))


def _create_calibration_loader(
    dataset: Dataset[Any], recipe: Recipe, world: World, for_evaluation: Mapping[str, Any]
) -> Loader:
    """Some training images in random order, prepared as for evaluation; the same whenever the seed is the same."""
    if isinstance(dataset, IterableDataset):
        return create_loader(dataset, **for_evaluation)
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(recipe.run.seed))  # type: ignore[arg-type]
    count = recipe.run.recalibrate_bn * for_evaluation["batch_size"] * world.size
    chosen = Subset(dataset, order[:count].tolist())
    loader = create_loader(chosen, **for_evaluation)
    dataset.transform = chosen.transform  # type: ignore[attr-defined] # timm set it on the subset, images come from here
    return loader


def preparation(recipe: Recipe, input_size: tuple[int, ...], model_config: Mapping[str, Any]) -> dict[str, Any]:
    """How images become inputs, in timm's words, with a mean and deviation for each channel.

    Args:
        recipe: The settings.
        input_size: Size of an input image, `(C, H, W)`.
        model_config: timm's `pretrained_cfg`, which holds where the settings say nothing.

    Raises:
        InputError: If there are means or deviations for another number of channels.
    """
    data, channels = recipe.data, input_size[0]
    for name in ("mean", "std"):
        if (given := getattr(data, name)) and len(given) not in (1, channels):
            raise InputError(f"{flag_of(name)} is {given}; give one value, or one for each of {channels} channels")
    overrides = {key: getattr(data, key) for key in ("mean", "std", "interpolation", "crop_pct") if getattr(data, key)}
    prepared: dict[str, Any] = resolve_data_config(overrides | {"input_size": input_size}, pretrained_cfg=model_config)
    return prepared | {name: adapt_to_chs(prepared[name], channels) for name in ("mean", "std")}


def _for_both_splits(recipe: Recipe, world: World, prepared: Mapping[str, Any]) -> dict[str, Any]:
    data = recipe.data
    return {
        "input_size": prepared["input_size"],
        "mean": prepared["mean"],
        "std": prepared["std"],
        "num_workers": data.workers,
        "worker_seeding": data.worker_seeding,
        "distributed": True,
        "pin_memory": data.pin_mem,
        "use_prefetcher": not data.no_prefetcher,
        "img_dtype": weights_dtype(recipe),
        "device": world.device,
        "persistent_workers": False,
    }


def _mixing(recipe: Recipe, num_classes: int) -> Mixup | FastCollateMixup | None:
    """Mixup and cutmix: on batches, or without the prefetcher's uint8 images on what is on the device already."""
    augment = recipe.augment
    if not augment.mixes:
        return None
    return (Mixup if recipe.data.no_prefetcher else FastCollateMixup)(
        mixup_alpha=augment.mixup,
        cutmix_alpha=augment.cutmix,
        cutmix_minmax=augment.cutmix_minmax,
        prob=augment.mixup_prob,
        switch_prob=augment.mixup_switch_prob,
        mode=augment.mixup_mode,
        label_smoothing=augment.smoothing,
        num_classes=num_classes,
    )


def _create_train_loader(
    dataset: Dataset[Any], recipe: Recipe, interpolation: str, mix: Mixup | None, shared: Mapping[str, Any]
) -> Loader:
    augment = recipe.augment
    if augment.aug_splits:
        dataset = AugMixDataset(dataset, num_splits=augment.aug_splits)
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
        color_jitter_prob=augment.color_jitter_prob,
        grayscale_prob=augment.grayscale_prob or 0.0,
        gaussian_blur_prob=augment.gaussian_blur_prob or 0.0,
        auto_augment=augment.aa,
        num_aug_repeats=augment.aug_repeats,
        num_aug_splits=augment.aug_splits,
        re_prob=augment.reprob,
        re_mode=augment.remode,
        re_count=augment.recount,
        re_split=augment.resplit,
        interpolation=interpolation if augment.no_aug else augment.train_interpolation,
        collate_fn=None if recipe.data.no_prefetcher else mix,
        **shared,
    )


class DirectLoader:
    """A loader without timm's prefetcher: its batches come normalised; here they go to the device and are mixed.

    Its processes outlive signals.

    Args:
        loader: Gives normalised images and labels.
        device: Where they are wanted.
        dtype: Precision of the images.
        mix: Mixes a batch.
        max_batches: An epoch ends after so many.
    """

    def __init__(
        self,
        loader: DataLoader[Any],
        *,
        device: torch.device,
        dtype: torch.dtype,
        mix: Mixup | None = None,
        max_batches: int | None = None,
    ):
        outlive_signals(loader)
        self._loader = loader
        self._max_batches = max_batches
        self._device = device
        self._dtype = dtype
        self._mix = mix
        self.mixup_enabled = mix is not None
        self.dataset = loader.dataset
        self.sampler = loader.sampler

    def __len__(self) -> int:
        count = len(self._loader)
        return count if self._max_batches is None else min(count, self._max_batches)

    def __iter__(self) -> Iterator[Batch]:
        for images, labels in islice(self._loader, self._max_batches):
            # Images in pinned memory go to a GPU while the host prepares the step.
            batch = (
                images.to(self._device, self._dtype, non_blocking=True),
                labels.to(self._device, non_blocking=True),
            )
            if self._mix is not None:
                self._mix.mixup_enabled = self.mixup_enabled
                batch = self._mix(*batch)
            yield batch


def without_padding(loader: Loader, world: World, after_batch: Callable[[], None] = lambda: None) -> Iterator[Batch]:
    """The batches of this rank without the images that timm's sampler adds to make ranks even.

    Over all ranks every image comes exactly once. Streamed datasets have no such padding; their readers share the
    images out.

    Args:
        loader: Over a validation split.
        world: This process among all.
        after_batch: Called after each batch, equally often on all ranks; not for streamed datasets.
    """
    if isinstance(loader.dataset, IterableDataset):
        yield from loader
        return
    left = len(range(world.rank, len(loader.dataset), world.size))
    for images, labels in loader:
        if left > 0:
            yield images[:left], labels[:left]
        left -= len(images)
        after_batch()


def some_images(loader: Iterable[Batch], count: int) -> Iterator[torch.Tensor]:
    """The first `count` images of a loader, in batches."""
    for images, _ in loader:
        yield images[:count]
        count -= len(images)
        if count <= 0:
            return


def weights_dtype(recipe: Recipe) -> torch.dtype:
    """Precision of weights and images."""
    dtype: torch.dtype = getattr(torch, recipe.model.model_dtype or "float32")
    return dtype

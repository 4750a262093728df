"""The data sets of a run and their loaders, from its recipe."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from timm.data import AugMixDataset, FastCollateMixup, Mixup, create_loader, create_transform
from torch.utils.data import IterableDataset, Subset
from torchvision.transforms import Compose, InterpolationMode, RandomChoice, RandomCrop, Resize

from stitchkit.classes import same_text
from stitchkit.data.batches import DirectLoader, Loader
from stitchkit.data.decoding import Decoding
from stitchkit.data.folders import FolderReader, find_split
from stitchkit.data.labelled_images import Images
from stitchkit.data.loader_processes import outlive_signals, workers_for
from stitchkit.data.open_dataset import agreed_classes, check_folders, open_dataset
from stitchkit.data.source import is_list, is_unlabelled
from stitchkit.data.unreadable import CheckedImages
from stitchkit.display import counted
from stitchkit.distributed import World
from stitchkit.errors import InputError, one_line, prefixed
from stitchkit.measure.recalibrate import PORTION, num_images
from stitchkit.networks.data_config import DataConfig, data_config_of, given_data_config, timm_config
from stitchkit.settings.recipe import Recipe
from stitchkit.settings.schema import flag_of
from stitchkit.training.inputs import source_of

BANK_IMAGES = 50_000
"""Labelled images for the comparison of features, unless `--bank-images` says otherwise."""
T = TypeVar("T")


@dataclass(frozen=True)
class Datasets:
    """The open splits of a data set; `train` is None if there is nothing to train or recalibrate.

    `classes` are in the order of their numbers; empty if the reader does not know them.
    """

    train: Images | None
    validation: Images
    classes: tuple[str, ...]


def check_labels(recipe: Recipe) -> None:
    """Refuse images without labels where labels are needed, before anything is written."""
    source, is_single = source_of(recipe), bool(recipe.model.model)
    if recipe.dense.is_dense or not (source.needs_labels and is_unlabelled(source, recipe.data.train_split)):
        return  # in a folder for dense prediction, the splits may be within images/
    images = f"data folder '{source.root}' has no train/ folder with class folders in it, so its images are"
    if is_list(str(source.root)):
        images = f"list '{source.root}' names images"
    why = "--model" if is_single else f"--loss {recipe.stitch.loss}"
    advice = "" if is_single else ", or train without labels by --loss features"
    raise InputError(
        f"{images} without labels, which {why} needs; give a folder with train/ and validation/ (or val/, or test/), "
        f"with one folder per class in each{advice}"
    )


def open_datasets(recipe: Recipe) -> Datasets:
    """Open the splits that a run needs, before anything is computed."""
    data, source = recipe.data, source_of(recipe)
    options = {"num_samples": data.train_num_samples, "repeats": data.epoch_repeats}
    train = opened_to_train(recipe, lambda: open_dataset(source, data.train_split, is_training=True, **options))
    if train is not None:
        for name in ("aug_repeats", "aug_splits"):
            if isinstance(train, IterableDataset) and getattr(recipe.augment, name):
                raise InputError(f"{flag_of(name)} is not for streamed datasets; set it to 0")
    validation = open_dataset(source, data.val_split, num_samples=data.val_num_samples)
    if train is None:
        _check_train_folders(validation, recipe)
    return Datasets(train, validation, agreed_classes(train, validation))


def opened_to_train(recipe: Recipe, open_split: Callable[[], T]) -> T | None:
    """The training split, unless an evaluation has no use for it."""
    if not recipe.run.eval:
        return open_split()
    if recipe.run.recalibrate_bn == 0:
        return None
    with prefixed("batch norms are recalibrated with training images, or kept with --recalibrate-bn 0: "):
        return open_split()


def _check_train_folders(validation: Images, recipe: Recipe) -> None:
    """Compare the classes of an image folder with those of its training split, which an evaluation does not open.

    A missing class would silently shift the numbers of all later ones, so that their labels were wrong.
    """
    reader = getattr(validation, "reader", None)
    if not isinstance(reader, FolderReader) or recipe.data.class_map:
        return
    try:
        folder = find_split(Path(reader.root).parent, recipe.data.train_split)
    except InputError:
        return  # the data may have no training split
    children = {child.name for child in folder.iterdir() if child.is_dir() and not child.name.startswith(".")}
    # ImageNet has 1.3 million training files, so they are listed only if the folders' names differ.
    if {*map(same_text, children)} != set(validation.classes):
        where = f"the {validation.split} split of '{folder.parent}'"
        check_folders(tuple(FolderReader(folder).class_to_idx), validation.classes, where)


def preparation(recipe: Recipe, input_size: tuple[int, ...], model_config: Mapping[str, object]) -> DataConfig:
    """The preparation of images of size `(C, H, W)`; what the settings leave open is as in timm's `pretrained_cfg`."""
    check_normalisation(recipe, input_size[0])
    return data_config_of(given_data_config(recipe.flat()), input_size, model_config)


def check_normalisation(recipe: Recipe, channels: int) -> None:
    """Refuse means and deviations that do not fit the channels of an image."""
    for name in ("mean", "std"):
        if (values := getattr(recipe.data, name)) and len(values) not in (1, channels):
            raise InputError(f"{flag_of(name)} is {values}; set one value, or one for each of {channels} channels")


@contextmanager
def _by_timm() -> Iterator[None]:
    """Raise timm's errors about the preparation of images as an `InputError`."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # timm reads its options late, and raises anything
        raise InputError(f"timm cannot prepare images with these settings: {one_line(error)}") from error


def check_augmentation(recipe: Recipe) -> None:
    """Refuse an augmentation that timm does not have, before the data are opened."""
    policy = recipe.augment.aa
    if recipe.augment.no_aug or not policy:
        return
    try:
        create_transform(32, is_training=True, auto_augment=policy)
    except Exception as error:  # assertions for most, and whatever a bad number raises
        names = "original, originalr, v0, v0r, 3a, rand or augmix, and options after dashes: rand-m9-mstd0.5-inc1"
        raise InputError(f"--aa is '{policy}', which timm cannot read; give {names}") from error


@dataclass(frozen=True)
class Loaders:
    """The loaders of a run.

    In an evaluation, `train` gives portions of images that renew batch-norm statistics, the same on all ranks and
    prepared as for evaluation, and `held_out` those that judge the statistics.
    """

    train: Loader | None
    validation: Loader  # iterate through `without_padding`
    mean: tuple[float, ...]  # of each channel, for the normalisation of images
    std: tuple[float, ...]
    held_out: tuple[Loader, ...] = ()


def create_loaders(
    datasets: Datasets, recipe: Recipe, world: World, *, input_size: tuple[int, ...],
    model_config: Mapping[str, object], num_classes: int,
) -> Loaders:  # fmt: skip
    """Loaders over this rank's part of the splits; `input_size` and `model_config` are as for `preparation`."""
    train: Loader | None = None
    held_out: list[Loader] = []
    with _by_timm():
        prepared = preparation(recipe, input_size, model_config)
        for_evaluation = _for_evaluation(recipe, prepared)
        for images in (datasets.train, datasets.validation):
            if images is not None:
                images.decoding = Decoding.of(prepared)
        judged = _checked(datasets.validation, recipe, num_classes, is_training=False)
        validation = _create_loader(judged, recipe, world, **for_evaluation)
        if datasets.train is not None:
            trained = _checked(datasets.train, recipe, num_classes, is_training=True)
            if recipe.run.eval:
                train, *held_out = _calibration_loaders(trained, recipe, world, for_evaluation)
            else:
                train = _create_train_loader(trained, recipe, world, prepared, num_classes)
                check_step(len(train), len(train.dataset), recipe, world)
    return Loaders(train, validation, tuple(prepared["mean"]), tuple(prepared["std"]), tuple(held_out))


def check_step(batches: int, images: int, recipe: Recipe, world: World) -> None:
    """Refuse a training split whose images give a rank fewer batches than one step takes."""
    size, accumulated = recipe.data.batch_size, recipe.optim.grad_accum_steps
    if batches < accumulated:
        of = f"--batch-size {size} x {counted(world.size, 'rank')} x {counted(accumulated, 'accumulated batch')}"
        needed = f"fewer than one step needs ({size * world.size * accumulated} = {of})"
        raise InputError(f"the training split has {images} images, {needed}; lower --batch-size")


def create_bank_loader(
    recipe: Recipe, world: World, *, input_size: tuple[int, ...], model_config: Mapping[str, object]
) -> Loader:
    """Labelled training images, prepared as for evaluation: at most `--bank-images`, by the seed; all of a stream."""
    options = {"num_samples": recipe.data.train_num_samples}
    images = open_dataset(source_of(recipe), recipe.data.train_split, is_training=True, **options)  # shuffles streams
    if not (images.classes or isinstance(images, IterableDataset)):
        raise InputError(f"the {images.split} split of '{source_of(recipe)}' has no labels")
    count = recipe.run.bank_images or BANK_IMAGES
    with _by_timm():
        prepared = preparation(recipe, input_size, model_config)
        images.decoding, for_evaluation = Decoding.of(prepared), _for_evaluation(recipe, prepared)
        bank = _checked(images, recipe, 0, is_training=False)
        numbers = [] if isinstance(bank, IterableDataset) else drawn_numbers(len(bank), count, recipe.run.seed)
        return _create_sample_loader(bank, numbers, recipe, world, for_evaluation)


def _for_evaluation(recipe: Recipe, prepared: DataConfig) -> dict[str, Any]:
    return {**timm_config(prepared), "batch_size": recipe.data.validation_batch_size or recipe.data.batch_size}


def _checked(images: Images, recipe: Recipe, num_classes: int, *, is_training: bool) -> Images | CheckedImages:
    """A split without the unreadable images; readers of streams skip them themselves."""
    if isinstance(images, IterableDataset):
        return images
    limit, flag = recipe.data.max_unreadable, flag_of("max_unreadable")
    return CheckedImages(images, num_classes=num_classes, is_training=is_training, limit=limit, flag=flag)


def _create_loader(images: Any, recipe: Recipe, world: World, mix: Mixup = None, **options: Any) -> Loader:
    """timm's loader with its batches on the device: by its prefetcher, or else by a `DirectLoader`."""
    data, dtype = recipe.data, weights_dtype(recipe)
    # Fresh workers draw only from the epoch's seed; persistent ones would remember earlier epochs (law 8).
    loader = create_loader(
        images, **{"distributed": True, **options}, num_workers=workers_for(images, data.workers, world),
        worker_seeding=data.worker_seeding, pin_memory=data.pin_mem, use_prefetcher=not data.no_prefetcher,
        img_dtype=dtype, device=world.device, persistent_workers=False,
    )  # fmt: skip
    if data.no_prefetcher:
        return DirectLoader(loader, device=world.device, dtype=dtype, mix=mix)
    outlive_signals(loader)
    return loader


def _calibration_loaders(
    images: Images | CheckedImages, recipe: Recipe, world: World, for_evaluation: Mapping[str, Any]
) -> list[Loader]:
    """The training images that renew batch-norm statistics, and those that judge them if these compete.

    Neither the batch size nor the number of ranks decides which. A stream gives both, one after the other.
    """
    options = {**for_evaluation, "batch_size": PORTION, "distributed": False}
    if isinstance(images, IterableDataset):
        return [_create_sample_loader(images, [], recipe, world, options)]
    renewing, judging = num_images(len(images), recipe.run.recalibrate_bn)
    numbers = drawn_numbers(len(images), renewing + judging, recipe.run.seed)
    parts = filter(None, (numbers[:renewing], numbers[renewing:]))
    return [_create_sample_loader(images, part, recipe, world, options) for part in parts]


def _create_sample_loader(
    images: Images | CheckedImages, numbers: Sequence[int], recipe: Recipe, world: World,
    for_evaluation: Mapping[str, Any],
) -> Loader:  # fmt: skip
    """Some training images by their numbers, prepared as for evaluation. Of a stream, all."""
    if isinstance(images, IterableDataset):
        return _create_loader(images, recipe, world, **for_evaluation)
    chosen = Subset(images, numbers)
    loader = _create_loader(chosen, recipe, world, **for_evaluation)
    images.transform = chosen.transform  # type: ignore[attr-defined] # timm set it on the subset only
    return loader


def drawn_numbers(total: int, count: int, seed: int) -> list[int]:
    """Numbers of at most `count` of some images, in random order."""
    order: list[int] = torch.randperm(total, generator=torch.Generator().manual_seed(seed)).tolist()
    return order[:count]


# Arguments of timm's functions by our settings, where the names differ.
_MIXING = {
    "mixup_alpha": "mixup", "cutmix_alpha": "cutmix", "cutmix_minmax": "cutmix_minmax", "prob": "mixup_prob",
    "switch_prob": "mixup_switch_prob", "mode": "mixup_mode", "label_smoothing": "smoothing",
}  # fmt: skip
_AUGMENTATION = {
    "auto_augment": "aa", "num_aug_repeats": "aug_repeats", "num_aug_splits": "aug_splits", "re_prob": "reprob",
    "re_mode": "remode", "re_count": "recount", "re_split": "resplit",
} | {
    name: name
    for name in ("no_aug", "train_crop_mode", "scale", "ratio", "hflip", "vflip", "color_jitter", "color_jitter_prob")
}  # fmt: skip


def _create_train_loader(
    images: Images | CheckedImages, recipe: Recipe, world: World, prepared: DataConfig, num_classes: int
) -> Loader:
    augment, prefetch = recipe.augment, not recipe.data.no_prefetcher
    mix = None
    if augment.mixes:
        # The prefetcher normalises on the device, so its batches are mixed earlier, as bytes, when they are collated;
        # without it, `DirectLoader` mixes them on the device.
        options = {name: getattr(augment, own) for name, own in _MIXING.items()}
        mix = (FastCollateMixup if prefetch else Mixup)(**options, num_classes=num_classes)
    options = {name: getattr(augment, own) for name, own in _AUGMENTATION.items()}
    interpolation = prepared["interpolation"] if augment.no_aug else augment.train_interpolation
    is_src = augment.train_crop_mode == "src" and not augment.no_aug  # timm does not have it
    if augment.aug_splits:
        images = AugMixDataset(images, num_splits=augment.aug_splits)
    loader = _create_loader(
        images, recipe, world, mix, is_training=True, batch_size=recipe.data.batch_size,
        collate_fn=mix if prefetch else None, grayscale_prob=augment.grayscale_prob or 0.0,
        gaussian_blur_prob=augment.gaussian_blur_prob or 0.0,
        **timm_config(prepared) | {"interpolation": interpolation},
        **options | ({"train_crop_mode": None} if is_src else {}),
    )  # fmt: skip
    if is_src:
        # The shorter side resized to that of the crop, a border of 4 mirrored pixels, and a crop at random.
        # Source: DeiT III, section 3.2, "simple random crop", as in its released code.
        assert isinstance(images.transform, Compose), "timm composes them, and the crop is the first"
        size, modes = (
            prepared["input_size"][1:],
            ("bilinear", "bicubic") if interpolation == "random" else (interpolation,),
        )
        resize = RandomChoice([Resize(max(size), InterpolationMode(mode)) for mode in modes])
        crop = RandomCrop(tuple(size), padding=4, padding_mode="reflect")
        images.transform.transforms[0] = Compose([resize, crop])
    return loader


def weights_dtype(recipe: Recipe) -> torch.dtype:
    """Precision of weights and images."""
    dtype: torch.dtype = getattr(torch, recipe.model.model_dtype or "float32")
    return dtype

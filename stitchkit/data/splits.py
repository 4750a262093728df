"""The data sets of a run, opened and checked before anything is computed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timm.data.readers.reader_image_folder import ReaderImageFolder
from torch.utils.data import Dataset, IterableDataset

from stitchkit.classes import in_order
from stitchkit.data.folders import class_folders, find_split
from stitchkit.data.sources import Source, agreed_classes, check_folders, open_dataset
from stitchkit.errors import InputError
from stitchkit.settings.recipe import Recipe, flag_of


@dataclass(frozen=True)
class Datasets:
    """The splits of a dataset.

    Args:
        train: The training split; None when there is nothing to train or recalibrate.
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
    data, source = recipe.data, _source(recipe)
    train = None
    if not recipe.run.eval or recipe.run.recalibrate_bn:
        options = {"num_samples": data.train_num_samples, "repeats": data.epoch_repeats}
        train = open_dataset(source, data.train_split, is_training=True, **options)
        for name in ("aug_repeats", "aug_splits"):
            if isinstance(train, IterableDataset) and getattr(recipe.augment, name):
                raise InputError(f"{flag_of(name)} is not for streamed datasets; set it to 0")
    validation = open_dataset(source, data.val_split, num_samples=data.val_num_samples)
    if train is None:
        _check_train_folders(validation, recipe)
    return Datasets(train, validation, agreed_classes(train, validation))


def _source(recipe: Recipe) -> Source:
    data = recipe.data
    options = {"batch_size": data.batch_size, "seed": recipe.run.seed}
    options |= {key: value for key in ("input_key", "target_key") if (value := getattr(data, key)) is not None}
    mode = data.input_img_mode or ("RGB" if recipe.model.channels == 3 else "L")
    return Source(data.dataset, data.data_dir, data.dataset_download, mode, data.class_map, tuple(options.items()))


def _check_train_folders(validation: Any, recipe: Recipe) -> None:
    """See that the training split of an image folder has the same classes, by the names of its files alone.

    An evaluation does not open it; where its folders are the classes at first sight, no file is looked for.
    """
    reader = getattr(validation, "reader", None)
    if not isinstance(reader, ReaderImageFolder) or recipe.data.class_map:
        return
    try:
        folder = find_split(Path(reader.root).parent, recipe.data.train_split)
    except InputError:
        return  # there may be images to evaluate on and no others
    children = {place.name for place in folder.iterdir() if place.is_dir() and not place.name.startswith(".")}
    if children != set(validation.classes):
        where = f"the {validation.split} split of '{folder.parent}'"
        check_folders(in_order(class_folders(folder)), validation.classes, where)

"""Datasets, timm's, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timm.data.readers.reader_image_folder import ReaderImageFolder
from torch.utils.data import Dataset, IterableDataset
from torchvision.datasets import ImageFolder

from stitchkit.classes import in_order, number_in_order
from stitchkit.data.timm_readers import open_timm
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
    data = recipe.data
    if not data.dataset and not Path(data.data_dir or "").exists():
        raise InputError(f"data folder '{data.data_dir}' does not exist; give a folder with {_layout(recipe)}")
    trains = not recipe.run.eval or recipe.run.recalibrate_bn
    train = _open(recipe, data.train_split, is_training=True) if trains else None
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
        dataset = open_timm(
            data.dataset,
            root=data.data_dir,
            split=split,
            is_training=is_training,
            class_map=data.class_map,
            download=data.dataset_download,
            batch_size=data.batch_size,
            seed=recipe.run.seed,
            repeats=data.epoch_repeats if is_training else 0,
            input_img_mode=data.input_img_mode or ("RGB" if recipe.model.channels == 3 else "L"),
            num_samples=data.train_num_samples if is_training else data.val_num_samples,
            **options,
        )
    except InputError:
        raise
    except Exception as error:  # the readers of many libraries raise many kinds
        place = f"'{data.dataset or data.data_dir}', split '{split}'"
        raise InputError(f"dataset {place} cannot be opened: {type(error).__name__}: {error}") from error
    if is_training and isinstance(dataset, IterableDataset):
        for name in ("aug_repeats", "aug_splits"):
            if getattr(recipe.augment, name):
                raise InputError(f"{flag_of(name)} is not for streamed datasets; set it to 0")
    _number_folders(dataset, recipe)
    # Where a folder has no such split, timm takes the whole folder for it.
    root = getattr(getattr(dataset, "reader", None), "root", None)
    if not data.dataset and root is not None and Path(root) == Path(data.data_dir or "") and Path(root).is_dir():
        raise InputError(f"data folder '{data.data_dir}' has no {split}/ folder; it needs {_layout(recipe)}")
    return dataset


def _number_folders(dataset: Dataset[Any], recipe: Recipe) -> None:
    """Number the classes of an image folder in our order; what a person or a publisher has numbered stays so."""
    reader = getattr(dataset, "reader", dataset)
    is_ours = isinstance(reader, ReaderImageFolder) and not recipe.data.class_map
    if is_ours or type(reader) is ImageFolder:  # torchvision's published sets are subclasses of it
        number_in_order(reader)


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
    return tuple(in_order(names)) if names & set(found) else ()

"""Images and labels: data sets of the Hugging Face hub, local folders, arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from torch.utils.data import IterableDataset
from torchvision.transforms import Compose

from stitchkit.classes import in_order
from stitchkit.data.folders import is_split, open_images
from stitchkit.data.sources import Source, open_dataset
from stitchkit.data.unreadable import NO_CLASS, CheckedImages, report
from stitchkit.errors import InputError, one_line, unknown
from stitchkit.optional import optional
from stitchkit.paths import check_local

if TYPE_CHECKING:
    from datasets import Dataset

PIXELS = "pixel_values"
"""Column of the prepared images `[1, 3, H, W]`."""
_BATCH = 128
_KEPT_BYTES = 2**29


class Examples(Protocol):
    """A dataset of `load_hf_dataset`, a sequence of pairs of an image `[3, H, W]` and a label, or two arrays."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> object: ...


def as_images(images: object, *, what: str = "images") -> torch.Tensor:
    """Prepared images, a tensor or an array, as a tensor `[B, C, H, W]` in float32; a message calls them `what`."""
    try:
        values = torch.as_tensor(images)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{what} are {type(images).__name__}, not an array; `stitchnet.stitching_images` draws one from a dataset"
        ) from error
    if values.ndim != 4 or not values.is_floating_point():
        raise InputError(
            f"{what} are {list(values.shape)} of {values.dtype}; they must be prepared images [B, C, H, W] as floats"
        )
    return values.float()


def preparation(size: tuple[int, int]) -> Callable[[Image.Image], torch.Tensor]:
    """The transform of an image of any mode to a tensor `[3, H, W]`: resize, centre crop, ImageNet's normalisation.

    From 128 pixels on, the crop keeps seven eighths of each side, as usual; smaller images are not cropped.
    """
    crop = 0.875 if min(size) >= 128 else 1.0
    normalised = create_transform((3, *size), is_training=False, interpolation="bicubic", crop_pct=crop)
    transform: Callable[[Image.Image], torch.Tensor] = Compose([_rgb, normalised])
    return transform


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # PIL would clip 16 bits at 255 instead of scaling them
        image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
    return image.convert("RGB")


def read_image(path: str | Path, size: tuple[int, int]) -> torch.Tensor:
    """A prepared image from a file `[3, H, W]`."""
    try:
        with Image.open(path) as image:
            return preparation(size)(image)
    except OSError as error:  # PIL's own errors are of this kind
        raise InputError(f"image '{path}' cannot be read: {error}; name image files") from error


def load_hf_dataset(
    name: str,
    train_split: str = "validation",
    val_split: str = "test",
    label_column: str | None = None,
    seed: int = 47,
    *,
    size: int = 224,
) -> tuple[Dataset, Dataset]:
    """Two shuffled splits of an image dataset, with prepared images `[1, 3, H, W]` in the column `pixel_values`.

    Args:
        name: A dataset on the Hugging Face hub, or a local folder of images with a folder for each split and in it
            one for each class; these are numbered as in all commands, class2 before class10.
        train_split: Name of the first split.
        val_split: Name of the second split.
        label_column: Name of the labels; by default `label` in a local folder, `labels` on the hub.
        seed: Seed of the order.
        size: Side of the images.

    Raises:
        InputError: If there is no such dataset, split or column, or it has no images.
    """
    datasets = optional("datasets", "data", "a data set of Hugging Face")
    check_local(name, "dataset")
    is_folder = Path(name).is_dir()
    arguments = {"path": "imagefolder", "data_dir": name} if is_folder else {"path": name}
    column = label_column or ("label" if is_folder else "labels")
    try:
        both = datasets.load_dataset(**arguments, split=[train_split, val_split])
    except Exception as error:  # the library and the hub raise many types
        raise InputError(
            f"dataset '{name}' with the splits '{train_split}' and '{val_split}' cannot be loaded: {one_line(error)}; "
            "check the name, the splits and the network"
        ) from error
    if is_folder:
        both = [_in_our_order(one, column) for one in both]
    first, second = (_with_pixels(one.shuffle(seed=seed), column, size) for one in both)
    return first, second


def _in_our_order(dataset: Dataset, column: str) -> Dataset:
    """The labels of a folder numbered as in all commands.

    The library sorts class names as plain text. Its own `align_labels_with_mapping` would change all names to lower
    case, and so merge classes that differ only in case.
    """
    from datasets import ClassLabel

    feature = dataset.features.get(column)
    if not isinstance(feature, ClassLabel) or in_order(feature.names) == feature.names:
        return dataset
    ours = ClassLabel(names=in_order(feature.names))
    moved = {number: ours.str2int(name) for number, name in enumerate(feature.names)}
    labels = [moved.get(label, label) for label in dataset[column]]  # -1 and None mean no class
    return dataset.remove_columns(column).add_column(column, labels, feature=ours)


def _with_pixels(dataset: Dataset, label_column: str, size: int) -> Dataset:
    from datasets import Image as ImageColumn

    if label_column not in dataset.column_names:
        raise unknown("label column", label_column, dataset.column_names)
    column = next((name for name, feature in dataset.features.items() if isinstance(feature, ImageColumn)), None)
    if column is None:
        raise InputError(f"the dataset has no column of images, only {', '.join(dataset.column_names)}; choose another")
    prepare = preparation((size, size))

    def transform(rows: dict[str, list[Image.Image]]) -> dict[str, object]:
        return {**rows, PIXELS: [prepare(image)[None].numpy() for image in rows.pop(column)]}

    return dataset.with_transform(transform)


def image_folder(folder: str | Path, size: int | tuple[int, int] = 224) -> CheckedImages:
    """Prepared images and labels of a folder with one folder for each class, numbered as in all commands.

    Unreadable images have the label -1, which no figure counts; the log names them.

    Args:
        folder: The folder.
        size: Height and width, or the side.

    Raises:
        InputError: If it has no images.
    """
    check_local(str(folder), "image folder")
    if not is_split(Path(folder)):
        raise InputError(f"'{folder}' is not a folder with one folder of images for each class; check the path")
    images = open_images(Path(folder), mode="")
    images.transform = preparation((size, size) if isinstance(size, int) else size)
    return CheckedImages(images, num_classes=len(images.classes), is_training=False)


def open_split(name: str | Path, split: str, size: int) -> CheckedImages:
    """Prepared images and labels of a split, `train` or `validation`, of a data set as for `stitchkit.data.sources`."""
    images = open_dataset(Source(str(name), mode=""), split, is_training=split == "train")
    if isinstance(images, IterableDataset):
        raise InputError(f"'{name}' is streamed; use a data set whose images have numbers, such as one of hfds/")
    if not images.classes:
        raise InputError(f"the classes of '{name}' are not known; use an image folder with one folder per class")
    images.transform = preparation((size, size))
    return CheckedImages(images, num_classes=len(images.classes), is_training=False)


def in_memory(dataset: CheckedImages) -> Examples:
    """The pairs of a dataset whose images have one size, kept in memory if they are small."""
    if len(dataset) * dataset[0][0].nbytes > _KEPT_BYTES:
        return dataset
    pairs = [dataset[index] for index in range(len(dataset))]
    dataset.report()
    return [pair for pair in pairs if pair[1] != NO_CLASS]


def stitching_images(dataset: Examples, count: int = 32, *, seed: int = 0) -> torch.Tensor:
    """Random images of a dataset `[count, 3, H, W]`, without repetition.

    Args:
        dataset: A dataset as for `Net.fit`.
        count: Number of images; all if there are fewer.
        seed: Seed of the draw.
    """
    rows = _rows(dataset)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:count]
    return torch.stack([_image_of(rows[int(index)]) for index in order])


def batches(dataset: Examples, label_column: str | None = None) -> Iterator[tuple[torch.Tensor, np.ndarray]]:
    """Images `[B, 3, H, W]` and labels `[B]` of a dataset as for `Net.fit`, without those that have no class (-1)."""
    rows = _rows(dataset)
    if not len(rows):
        raise InputError("the dataset has no image; at least one is needed")
    is_empty = True
    for first in range(0, len(rows), _BATCH):
        some = [rows[index] for index in range(first, min(first + _BATCH, len(rows)))]
        pairs = [(_image_of(row), label) for row in some if (label := _label_of(row, label_column)) != NO_CLASS]
        if pairs:
            is_empty = False
            yield torch.stack([image for image, _ in pairs]), np.array([label for _, label in pairs])
    report(dataset)
    if is_empty:
        raise InputError("no image of the dataset has a class; classes must be numbered from 0")


def _rows(dataset: Examples) -> Examples:
    """The pairs of two arrays; other datasets are returned unchanged."""
    if not isinstance(dataset, tuple | list) or len(dataset) != 2 or not hasattr(dataset[0], "shape"):
        return dataset
    images, labels = as_images(dataset[0]), np.asarray(dataset[1])
    if len(images) != len(labels):
        raise InputError(f"{len(images)} images and {len(labels)} labels; the numbers must be equal")
    return list(zip(images, labels, strict=True))


def _image_of(row: object) -> torch.Tensor:
    if isinstance(row, tuple | list):
        return torch.as_tensor(row[0]).float()
    assert isinstance(row, Mapping), "a row of a library"
    if PIXELS not in row:
        raise unknown("column of prepared images", PIXELS, row)
    return torch.as_tensor(np.asarray(row[PIXELS])).float().squeeze(0)


def _label_of(row: object, label_column: str | None) -> int:
    if isinstance(row, tuple | list):
        label = row[1]
    else:
        assert isinstance(row, Mapping), "a row of a library"
        if label_column is None:
            raise InputError(f"a dataset with the columns {', '.join(row)} needs label_column, the name of the labels")
        if label_column not in row:
            raise unknown("label column", label_column, row)
        label = row[label_column]
    try:
        return int(label)
    except (TypeError, ValueError) as error:
        raise InputError(f"label {label!r} is not a class number; classes must be numbered from 0") from error

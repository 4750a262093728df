"""Images and labels: data sets of the Hugging Face hub, local folders, arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
import torch
from timm.data import create_transform
from torch.utils.data import IterableDataset
from torchvision.transforms import Compose
from typing_extensions import TypeIs

from stitchkit.data.decoding import Decoding, ImageSource, readable
from stitchkit.data.folders import find_split, open_images
from stitchkit.data.labelled_images import Images
from stitchkit.data.open_dataset import open_dataset
from stitchkit.data.source import Source
from stitchkit.data.split_rule import is_split
from stitchkit.data.unreadable import NO_CLASS, CheckedImages, report
from stitchkit.errors import InputError, one_line, unknown
from stitchkit.optional import optional
from stitchkit.paths import check_local

if TYPE_CHECKING:
    from datasets import Dataset as HubDataset, Features, IterableDataset as StreamedDataset

Rows: TypeAlias = dict[str, list[Any]]
Preparation: TypeAlias = Callable[[ImageSource], torch.Tensor]
PIXELS = "pixel_values"
"""Column of the prepared images `[1, 3, H, W]`."""
_BATCH = 128
_KEPT_BYTES = 2**29


class Examples(Protocol):
    """A dataset of `load_hf_dataset`, a sequence of pairs of an image `[3, H, W]` and a label, or two arrays."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> object: ...


Stream: TypeAlias = Iterable[object]
"""A streamed dataset of `load_hf_dataset`, or pairs as of `Examples` that come one after the other."""


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


def preparation(size: tuple[int, int]) -> Preparation:
    """The transform of an image of any mode to a tensor `[3, H, W]`: resize, centre crop, ImageNet's normalisation.

    From 128 pixels on, the crop keeps seven eighths of each side, as usual; smaller images are not cropped.
    """
    normalised = create_transform((3, *size), is_training=False, interpolation="bicubic", crop_pct=crop_pct(size))
    transform: Preparation = Compose([Decoding(), normalised])
    return transform


def crop_pct(size: tuple[int, int]) -> float:
    """The share of each side that the crop of images of this size keeps."""
    return 0.875 if min(size) >= 128 else 1.0


def read_image(path: str | Path, size: tuple[int, int]) -> torch.Tensor:
    """A prepared image from a file `[3, H, W]`."""
    with readable(path):
        return preparation(size)(path)


def load_hf_dataset(
    name: str,
    train_split: str = "validation",
    val_split: str = "test",
    label_column: str | None = None,
    seed: int = 47,
    streaming: bool = False,
    *,
    size: int = 224,
) -> tuple[Any, Any]:
    """Two shuffled splits of an image dataset, with prepared images `[1, 3, H, W]` in the column `pixel_values`.

    Args:
        name: A dataset on the Hugging Face hub, or a local folder of images with a folder for each split and in it
            one for each class, by the rules of all commands; the label of an unreadable image is -1, as in
            `image_folder`.
        train_split: Name of the first split.
        val_split: Name of the second split.
        label_column: Name of the labels; by default `label` in a local folder, `labels` on the hub.
        seed: Seed of the order.
        streaming: Read the images while they are used, without downloading all of them first; `take(32)` then draws
            some, and the order is random only within a buffer of 1000.
        size: Side of the images.

    Raises:
        InputError: If there is no such dataset, split or column, or it has no images.
    """
    datasets = optional("datasets", "data", "a data set of Hugging Face")
    check_local(name, "dataset")
    is_folder = Path(name).is_dir()
    column = label_column or ("label" if is_folder else "labels")
    splits, prepare = (train_split, val_split), preparation((size, size))
    try:
        if is_folder:
            local = [_local(Path(name), split, prepare) for split in splits]
            both = [(rows.to_iterable_dataset() if streaming else rows, prepared) for rows, prepared in local]
        else:
            prepared = partial(_prepared, prepare=prepare)
            both = [(datasets.load_dataset(name, split=split, streaming=streaming), prepared) for split in splits]
    except Exception as error:  # the library and the hub raise many types
        raise InputError(
            f"dataset '{name}' with the splits '{train_split}' and '{val_split}' cannot be loaded: {one_line(error)}; "
            "check the name, the splits and the network"
        ) from error
    first, second = (_with_pixels(rows.shuffle(seed=seed), column, prepared) for rows, prepared in both)
    return first, second


def _prepared(rows: Rows, image_column: str, prepare: Preparation) -> Rows:
    return {**rows, PIXELS: [prepare(image)[None].numpy() for image in rows[image_column]]}


def _local(folder: Path, split: str, prepare: Preparation) -> tuple[HubDataset, Callable[[Rows, str], Rows]]:
    """A split of a local folder, by the rules of all commands, as a dataset of the library; and `_prepared` for it."""
    from datasets import ClassLabel, Dataset, Features, Image as ImageColumn

    images = open_images(find_split(folder, split))
    paths, labels = zip(*images.reader.samples, strict=True)
    checked = CheckedImages(images, num_classes=len(images.classes), is_training=False)
    checked.transform = lambda image: (image, prepare(image)[None].numpy())
    numbers = {path: number for number, path in enumerate(paths)}

    def prepared(rows: Rows, image_column: str) -> Rows:
        pairs, labels = zip(*(checked[numbers[file["path"]]] for file in rows[image_column]), strict=True)
        # The label of a bad image, whatever the user calls its column now.
        for name, column in rows.items():
            rows[name] = [value if label != NO_CLASS else label for value, label in zip(column, labels, strict=True)]
        rows[image_column], rows[PIXELS] = map(list, zip(*pairs, strict=True))
        return rows

    features = Features({"image": ImageColumn(decode=False), "label": ClassLabel(names=list(images.classes))})
    return Dataset.from_dict({"image": list(paths), "label": list(labels)}, features=features), prepared


def _with_pixels(
    dataset: HubDataset | StreamedDataset, label_column: str, prepared: Callable[[Rows, str], Rows]
) -> HubDataset | StreamedDataset:
    """A dataset with the column of prepared images, which are prepared when they are used."""
    from datasets import IterableDataset as StreamedDataset

    image_column = _image_column(dataset.features or {}, label_column)

    def transform(rows: Rows) -> Rows:
        return prepared(rows, image_column)

    if isinstance(dataset, StreamedDataset):
        return dataset.map(transform, batched=True, batch_size=1, remove_columns=[image_column])
    return dataset.with_transform(transform)


def _image_column(features: Features, label_column: str) -> str:
    from datasets import Image as ImageColumn

    if label_column not in features:
        raise unknown("label column", label_column, features)
    column = next((name for name, feature in features.items() if isinstance(feature, ImageColumn)), None)
    if column is None:
        raise InputError(f"the dataset has no column of images, only {', '.join(features)}; choose another")
    return str(column)


def image_folder(folder: str | Path, size: int | tuple[int, int] = 224) -> CheckedImages:
    """Prepared images and labels of a folder with one folder for each class, numbered as in all commands.

    Unreadable images have the label -1, which no figure counts; the log names them. `size` is a side, or height and
    width.

    Raises:
        InputError: If it has no images.
    """
    check_local(str(folder), "image folder")
    if not is_split(Path(folder)):
        raise InputError(f"'{folder}' is not a folder with one folder of images for each class; check the path")
    return _checked(open_images(Path(folder)), (size, size) if isinstance(size, int) else size)


def open_split(name: str | Path, split: str, size: int, *, download: bool = False) -> CheckedImages:
    """Prepared images and labels of a split, `train` or `validation`, of a data set, named as in `open_dataset`."""
    images = open_dataset(Source(str(name), download=download), split, is_training=split == "train")
    if isinstance(images, IterableDataset):
        raise InputError(f"'{name}' is streamed; use a data set whose images have numbers, such as one of hfds/")
    if not images.classes:
        raise InputError(f"the classes of '{name}' are not known; use an image folder with one folder per class")
    return _checked(images, (size, size))


def _checked(images: Images, size: tuple[int, int]) -> CheckedImages:
    checked = CheckedImages(images, num_classes=len(images.classes), is_training=False)
    checked.transform = preparation(size)
    return checked


def in_memory(dataset: CheckedImages) -> Examples:
    """The pairs of a dataset whose images have one size, kept in memory if they are small."""
    if len(dataset) * dataset[0][0].nbytes > _KEPT_BYTES:
        return dataset
    pairs = [dataset[index] for index in range(len(dataset))]
    dataset.report()
    return [pair for pair in pairs if pair[1] != NO_CLASS]


def stitching_images(dataset: Examples | Stream, count: int = 32, *, seed: int = 0) -> torch.Tensor:
    """Random images `[count, 3, H, W]` of a dataset as for `Net.fit`, or all if there are fewer.

    A streamed dataset gives its first images.
    """
    rows = rows_of(dataset)
    if not is_sized(rows):
        return torch.stack([image_of(row) for row in islice(rows, count)])
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:count]
    return torch.stack([image_of(rows[int(index)]) for index in order])


def batches(dataset: Examples | Stream, label_column: str | None = None) -> Iterator[tuple[torch.Tensor, np.ndarray]]:
    """Images `[B, 3, H, W]` and labels `[B]` of a dataset as for `Net.fit`, without those that have no class (-1)."""
    rows, is_empty = rows_of(dataset), True
    each = iter(map(rows.__getitem__, range(len(rows))) if is_sized(rows) else rows)
    while some := list(islice(each, _BATCH)):
        pairs = [(image_of(row), label) for row in some if (label := label_of(row, label_column)) != NO_CLASS]
        if pairs:
            is_empty = False
            yield torch.stack([image for image, _ in pairs]), np.array([label for _, label in pairs])
    report(dataset)
    if is_empty:
        raise InputError("no image of the dataset has a class; at least one is needed, and classes are numbered from 0")


def is_sized(dataset: Examples | Stream) -> TypeIs[Examples]:
    """Whether the images of a dataset have numbers; those of a streamed one have none."""
    return isinstance(dataset, Sized)


def rows_of(dataset: Examples | Stream) -> Examples | Stream:
    """The pairs of two arrays; other datasets are returned unchanged."""
    if not isinstance(dataset, tuple | list) or len(dataset) != 2 or not hasattr(dataset[0], "shape"):
        return dataset
    images, labels = as_images(dataset[0]), np.asarray(dataset[1])
    if len(images) != len(labels):
        raise InputError(f"{len(images)} images and {len(labels)} labels; the numbers must be equal")
    return list(zip(images, labels, strict=True))


def image_of(row: object) -> torch.Tensor:
    """The image `[3, H, W]` of a row of a dataset."""
    if isinstance(row, tuple | list):
        return torch.as_tensor(row[0]).float()
    assert isinstance(row, Mapping), "a row of a library"
    if PIXELS not in row:
        raise unknown("column of prepared images", PIXELS, row)
    return torch.as_tensor(np.asarray(row[PIXELS])).float().squeeze(0)


def label_of(row: object, label_column: str | None) -> int:
    """The label of a row of a dataset."""
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

"""Data sets: image folders, timm's strings, torchvision's by name and scikit-learn's digits, opened in one way."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from PIL.Image import Image
from timm.data import ImageDataset
from timm.data.readers.reader_image_folder import ReaderImageFolder
from torch.utils.data import Dataset
from torchvision.datasets.folder import IMG_EXTENSIONS

from stitchkit.data.digits import read_digits
from stitchkit.data.folders import find_split, is_split, open_images
from stitchkit.data.split_rule import names_of, published_part
from stitchkit.data.timm_readers import open_timm
from stitchkit.data.torchvision_sets import SHORT, SOURCES, Samples, class_names, read
from stitchkit.errors import InputError, one_line, unknown
from stitchkit.optional import check_installed
from stitchkit.paths import check_dataset, check_local

_logger = logging.getLogger(__name__)

# Prefixes of timm's data set strings, and the packages that read them.
_TIMM = {
    "torch": "torchvision",
    "hfds": "datasets",
    "hfids": "datasets",
    "tfds": "tensorflow_datasets",
    "wds": "webdataset",
}
_FOLDERS = ("torch/image_folder", "torch/folder")


@dataclass
class LabelledImages(Dataset[tuple[object, int]]):
    """Images with their labels, from readers other than timm's.

    Args:
        samples: Images and labels.
        classes: Class names in the order of their numbers; empty if the reader does not know them.
        mode: PIL mode to which images are converted; empty for no conversion.
        transform: Applied to the converted image, e.g. one of `torchvision.transforms.v2`.
        split: Name of the split.
    """

    samples: Samples
    classes: tuple[str, ...]
    mode: str = "RGB"
    transform: Callable[[Image], object] | None = None
    split: str = ""

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[object, int]:
        image, label = self.samples[index]
        image = image.convert(self.mode) if self.mode else image
        return image if self.transform is None else self.transform(image), int(label)


Images: TypeAlias = ImageDataset | LabelledImages
"""An open split: a dataset of images and labels with `.classes`, `.split` and a settable `.transform`."""


@dataclass(frozen=True)
class Source:
    """The source of a data set, and options for reading it.

    Args:
        name: Empty for the image folder `root`; a folder, by itself or under `root`; a torchvision class such as
            `CIFAR10`, in any spelling of case and hyphens; a timm string such as `hfds/timm/resisc45`; or `digits`. For
            `imagenet` the `root` itself may have `train/` and `val/`.
        root: The folder of its files.
        download: Download missing files if the reader can.
        mode: PIL mode of the images; empty for no conversion.
        class_map: File that maps names of class folders to numbers.
        options: Further arguments of timm's readers; for image folders `input_key`, suffixes separated by `;`.
    """

    name: str
    root: str | Path | None = None
    download: bool = False
    mode: str = "RGB"
    class_map: str = ""
    options: tuple[tuple[str, object], ...] = ()

    def __str__(self) -> str:
        return self.name or str(self.root)


def open_dataset(source: Source, split: str, *, is_training: bool = False, **options: object) -> Images:
    """Open one split of a data set.

    Args:
        source: The data set.
        split: The requested name, by the rule of `split_rule`.
        is_training: Shuffle streamed data, and do not log the split as the one for evaluation.
        options: Further arguments of timm's readers for this split.

    Returns:
        The split; its `.classes` are in the order of their numbers, or empty if the reader does not know them.
    """
    check_dataset(source.name, "data set")
    check_local(str(source.root or ""), "folder of data sets")
    check_local(split, "split")
    dataset, found = _open(source, split, is_training, dict(source.options) | options)
    dataset.split = found
    if not is_training:
        _logger.info("evaluating on the %s images of '%s'", dataset.split, source)
    return dataset


def _open(source: Source, split: str, is_training: bool, options: dict[str, object]) -> tuple[Images, str]:
    """A split, and its name."""
    name, root = source.name, source.root
    if (folder := _folder_of(source)) is not None:
        return _open_folder(source, folder, split, options)
    if not name or (name.partition("/")[0].lower() in _TIMM and "/" in name):
        return _open_timm(source, split, is_training, options)
    key = _key(name)
    if key == "digits":
        found = "train" if published_part(split) == "train" else "validation"
        digits = [(image, label) for _, image, label in read_digits(found)]
        return LabelledImages(digits, tuple(map(str, range(10))), source.mode), found
    if key in SOURCES:
        found = published_part(split)
        samples, classes = read(key, root, found, download=source.download)
        return LabelledImages(samples, classes, source.mode), found
    place = Path(root or "", name)
    if place.is_dir():
        raise InputError(
            f"data folder '{place}' has no train/ folder; it needs train/ and val/, with one folder per class in each"
        )
    if "/" in name:
        raise InputError(f"data folder '{place}' does not exist; check the path")
    raise unknown("data set", name, sorted([*SOURCES, *SHORT, "digits"]))


def _key(name: str) -> str:
    key = "".join(letter for letter in name.lower() if letter not in "-_ ")
    return SHORT.get(key, key)


def _folder_of(source: Source) -> Path | None:
    """The image folder of a source; None if the source is something else."""
    name, root, key = source.name, source.root, _key(source.name)
    if not name or name.lower() in _FOLDERS:
        if not Path(root or "").exists():
            raise InputError(
                f"data folder '{root}' does not exist; it must have train/ and validation/, with one folder per "
                "class in each"
            )
        return Path(root or "") if Path(root or "").is_dir() else None
    place = Path(root or "", name)
    # torchvision's Country211 has class folders too, but its own meaning of the splits' names.
    if key != "country211" and any((place / name).is_dir() for name in names_of("train")):
        return place
    return Path(root) if key == "imagenet" and root is not None and _is_laid_out(Path(root)) else None


def _is_laid_out(root: Path) -> bool:
    """Whether a folder is ImageNet in its usual form: class folders without torchvision's own files beside them."""
    judged = any(is_split(root / name) for name in names_of("validation"))
    return judged and (root / "train").is_dir() and not (root / "meta.bin").exists()


def _open_folder(source: Source, folder: Path, split: str, options: dict[str, object]) -> tuple[Images, str]:
    place = find_split(folder, split)
    types = str(options["input_key"]).split(";") if options.get("input_key") else IMG_EXTENSIONS
    try:
        return open_images(place, mode=source.mode, class_map=source.class_map, types=types), place.name
    except InputError:
        raise
    except Exception as error:  # the class map cannot be read
        raise _unopened(source, split, error) from error


def _open_timm(source: Source, split: str, is_training: bool, options: dict[str, object]) -> tuple[Images, str]:
    """The first split of a data set under one of its usual names, by one of timm's readers."""
    library = source.name.partition("/")[0].lower()
    if source.name:
        check_installed([_TIMM[library]], "", f"data set '{source.name}'")
    refused: InputError | None = None
    for name in names_of(split):
        try:
            return read_timm(source, name, is_training=is_training, **options), name
        except InputError as error:  # noqa: PERF203
            refused = refused or error  # the message names the requested split
            if "split" not in str(error.__cause__).lower():
                break  # any other fault would recur under every name, perhaps after minutes of network
    assert refused is not None, "a split has a name"
    raise refused


def read_timm(source: Source, split: str, *, is_training: bool = False, **options: object) -> ImageDataset:
    """A data set by timm's string, with `.classes`."""
    root = None if source.root is None else str(source.root)
    common = {"download": source.download, "class_map": source.class_map, "input_img_mode": source.mode}
    try:
        dataset = open_timm(source.name, root=root, split=split, is_training=is_training, **common, **options)
    except InputError:
        raise
    except Exception as error:  # readers from many libraries raise many types
        raise _unopened(source, split, error) from error
    if not isinstance(dataset, ImageDataset) and not hasattr(dataset, "reader"):  # one of torchvision's
        return LabelledImages(dataset, class_names(dataset), source.mode)
    dataset.classes = class_names(dataset.reader)
    return dataset


def _unopened(source: Source, split: str, error: Exception) -> InputError:
    return InputError(
        f"data set '{source}', split '{split}', cannot be opened in '{source.root}' ({one_line(error)}); "
        "check its name and folder" + ("" if source.download else ", or allow the download, which is off")
    )


def agreed_classes(train: Images | None, judged: Images) -> tuple[str, ...]:
    """Class names of the two splits of a data set, in the order of their numbers; empty if no reader knows them."""
    if train is None:
        return judged.classes
    ours, theirs = (getattr(split, "reader", None) for split in (train, judged))
    if not (isinstance(ours, ReaderImageFolder) and isinstance(theirs, ReaderImageFolder)):
        return max(
            (train.classes, judged.classes), key=len
        )  # names may be counted numbers, and a split may lack the last classes
    check_folders(train.classes, judged.classes, f"the {judged.split} split of '{Path(theirs.root).parent}'")
    return train.classes


def check_folders(train: Sequence[str], judged: Sequence[str], where: str) -> None:
    """Compare the class folders of the training split and another one, which `where` describes in messages."""
    parts = []
    for verb, names in (("lacks", set(train) - set(judged)), ("also has", set(judged) - set(train))):
        if names:
            shown = ", ".join(sorted(names)[:5]) + (", ..." if len(names) > 5 else "")
            parts.append(f"{verb} {len(names)} class folders: {shown}")
    if parts:
        raise InputError(f"{where} {' and '.join(parts)}; labels would not agree, so both must have the same folders")

"""Data sets: image folders, timm's strings, torchvision's by name and scikit-learn's digits, opened in one way."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from timm.data import ImageDataset
from timm.data.readers.reader_image_folder import ReaderImageFolder

from stitchkit.data.digits import read_digits
from stitchkit.data.folders import SUFFIXES, find_split, is_split, open_images
from stitchkit.data.labelled_images import LabelledImages, class_names
from stitchkit.data.split_rule import names_of, published_part
from stitchkit.data.timm_readers import open_timm
from stitchkit.data.torchvision_sets import SHORT, SOURCES, read
from stitchkit.errors import InputError, one_line, unknown
from stitchkit.optional import check_installed
from stitchkit.paths import check_dataset, check_local

_logger = logging.getLogger(__name__)

# Prefixes of timm's data set strings, and the packages that read them.
_TIMM = {
    "torch": "torchvision", "hfds": "datasets", "hfids": "datasets", "tfds": "tensorflow_datasets", "wds": "webdataset"
}  # fmt: skip
_FOLDERS = ("torch/image_folder", "torch/folder")

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
        options: Further arguments of timm's readers; for image folders only `input_key`, suffixes separated by `;`.
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
    """Open one split of a data set, by the rule of `split_rule`.

    Args:
        source: The data set.
        split: The requested name.
        is_training: Shuffle streamed data, and do not log the split as the one for evaluation.
        options: Further arguments of timm's readers for this split.

    Returns:
        The split; its `.classes` are in the order of their numbers, or empty if the reader does not know them.
    """
    check_dataset(source.name, "data set")
    check_local(str(source.root or ""), "folder of data sets")
    check_local(split, "split")
    dataset = _open(source, split, {"is_training": is_training, **dict(source.options), **options})
    if not is_training:
        _logger.info("evaluating on the %s images of '%s'", dataset.split, source)
    return dataset


def _open(source: Source, split: str, options: dict[str, object]) -> Images:
    name, root, key = source.name, Path(source.root or ""), _key(source.name)
    is_root = not name or name.lower() in _FOLDERS
    place = root if is_root else root / name
    if is_root and not place.exists():
        raise _no_folder(place)
    # torchvision's Country211 has class folders too, but its own meaning of the splits' names.
    has_train = key != "country211" and any((place / one).is_dir() for one in names_of("train"))
    if has_train or (is_root and place.is_dir()):
        return _open_folder(source, place, split, options)
    if key == "imagenet" and source.root is not None and _is_laid_out(root):
        return _open_folder(source, root, split, options)
    if not name or (name.partition("/")[0].lower() in _TIMM and "/" in name):
        return _open_timm(source, split, options)
    if key == "digits":
        found = "train" if published_part(split) == "train" else "validation"
        digits = [(image, label) for _, image, label in read_digits(found)]
        return LabelledImages(digits, tuple(map(str, range(10))), source.mode, found)
    if key in SOURCES:
        return read(key, source.root, published_part(split), download=source.download, mode=source.mode)
    if place.is_dir():
        return _open_folder(source, place, split, options)  # which has only splits for evaluation
    if "/" in name:
        raise _no_folder(place)
    raise unknown("data set", name, sorted([*SOURCES, *SHORT, "digits"]))


def _key(name: str) -> str:
    key = "".join(letter for letter in name.lower() if letter not in "-_ ")
    return SHORT.get(key, key)


def _is_laid_out(root: Path) -> bool:
    """Whether a folder is ImageNet in its usual form: class folders without torchvision's own files beside them."""
    judged = any(is_split(root / name) for name in names_of("validation"))
    return judged and (root / "train").is_dir() and not (root / "meta.bin").exists()


def _no_folder(place: Path) -> InputError:
    return InputError(
        f"data folder '{place}' does not exist; it must have train/ and validation/, with one folder per class in each"
    )


def _open_folder(source: Source, folder: Path, split: str, options: dict[str, object]) -> Images:
    suffixes = str(options.get("input_key") or SUFFIXES)
    with _explained(source, split):  # the class map may be unreadable
        return open_images(find_split(folder, split), mode=source.mode, class_map=source.class_map, suffixes=suffixes)


def _open_timm(source: Source, split: str, options: dict[str, object]) -> Images:
    """The first split of a data set under one of its usual names, by one of timm's readers."""
    if source.name:
        check_installed([_TIMM[source.name.partition("/")[0].lower()]], "", f"data set '{source.name}'")
    first, *others = names_of(split)
    try:
        return read_timm(source, first, **options)
    except InputError as error:
        # Any other fault would recur under every name, perhaps after minutes of network.
        for name in others if "split" in str(error.__cause__).lower() else ():
            with suppress(InputError):
                return read_timm(source, name, **options)
        raise  # the message names the requested split


def read_timm(source: Source, split: str, **options: object) -> Images:
    """The split of exactly this name of a data set by timm's string."""
    root = None if source.root is None else str(source.root)
    options |= {"download": source.download, "class_map": source.class_map, "input_img_mode": source.mode}
    with _explained(source, split):
        dataset = open_timm(source.name, root=root, split=split, **options)
    if not isinstance(dataset, ImageDataset) and not hasattr(dataset, "reader"):  # one of torchvision's
        return LabelledImages(dataset, class_names(dataset), source.mode, split)
    dataset.classes, dataset.split = class_names(dataset.reader), split
    return dataset


@contextmanager
def _explained(source: Source, split: str) -> Iterator[None]:
    """Raise the errors of a reader as an `InputError`."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # readers from many libraries raise many types
        raise InputError(
            f"data set '{source}', split '{split}', cannot be opened in '{source.root}' ({one_line(error)}); "
            "check its name and folder" + ("" if source.download else ", or allow the download, which is off")
        ) from error


def agreed_classes(train: Images | None, judged: Images) -> tuple[str, ...]:
    """Class names of the two splits of a data set, in the order of their numbers; empty if no reader knows them."""
    if train is None:
        return judged.classes
    ours, theirs = (getattr(split, "reader", None) for split in (train, judged))
    if not (isinstance(ours, ReaderImageFolder) and isinstance(theirs, ReaderImageFolder)):
        # Names may be counted numbers, and a split may lack the last classes.
        return max(train.classes, judged.classes, key=len)
    check_folders(train.classes, judged.classes, f"the {judged.split} split of '{Path(theirs.root).parent}'")
    return train.classes


def check_folders(train: Sequence[str], judged: Sequence[str], where: str) -> None:
    """Compare the class folders of the training split and another one, which `where` describes in messages."""
    differences = {"lacks": set(train) - set(judged), "also has": set(judged) - set(train)}
    parts = [
        f"{verb} {len(names)} class folders: {', '.join(sorted(names)[:5])}{', ...' if len(names) > 5 else ''}"
        for verb, names in differences.items()
        if names
    ]
    if parts:
        raise InputError(f"{where} {' and '.join(parts)}; labels would not agree, so both must have the same folders")

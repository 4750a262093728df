"""Data sets: image folders, timm's strings, torchvision's by name and scikit-learn's digits, opened in one way."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from torch.utils.data import IterableDataset

from stitchkit.data.class_map import read_class_map
from stitchkit.data.demo import read_digits
from stitchkit.data.folders import FolderReader, find_split, open_images
from stitchkit.data.labelled_images import Images, LabelledImages, StreamedImages, class_names
from stitchkit.data.source import (
    FOLDERS,
    SHORT,
    SOURCES,
    TIMM,
    MissingData,
    Source,
    check_folder,
    check_no_pairs,
    is_unlabelled,
    key_of,
    no_folder,
)
from stitchkit.data.split_rule import is_split, names_of, published_part
from stitchkit.data.timm_readers import open_timm
from stitchkit.data.torchvision_sets import read
from stitchkit.data.unlabelled import UnlabelledReader, open_unlabelled
from stitchkit.display import counted, listed
from stitchkit.errors import InputError, one_line, unknown
from stitchkit.optional import check_installed
from stitchkit.paths import check_dataset, check_local

_logger = logging.getLogger(__name__)

# Folders of image folders by a data set's name, where the published jobs keep them.
_PLACES = {
    "aid": ("AID",), "ucm": ("UCMerced_LandUse", "uc_merced"), "resisc45": ("resisc45",),
    "eurosat": ("eurosat/splits",), "imagenet": ("imagenet",),
}  # fmt: skip


def open_dataset(source: Source, split: str, *, is_training: bool = False, **options: object) -> Images:
    """Open one split of a data set, by the rule of `split_rule`, with further arguments of timm's readers for it.

    In training, streamed data are shuffled, and the split is not logged as the one for evaluation.
    """
    check_dataset(source.name, "data set")
    check_local(str(source.root or ""), "folder of data sets")
    check_local(split, "split")
    dataset = _open(source, split, {"is_training": is_training, **dict(source.options), **options})
    if not isinstance(dataset, IterableDataset):
        _logger.info("%s", _contents(dataset))
    if not is_training:
        _logger.info("evaluating on the %s images of '%s'", dataset.split, source)
    return dataset


def download(source: Source) -> None:
    """Download what is missing of a data set, if its reader can; only one process calls this."""
    for split in ("train", "validation"):
        open_dataset(replace(source, download=True), split, is_training=True)


def _contents(images: Images) -> str:
    reader, number = getattr(images, "reader", None), counted(len(images), "image")
    if isinstance(reader, UnlabelledReader):
        return f"{images.split}: {number} without labels{reader.notes}"
    classes = (
        f"{counted(len(images.classes), 'class')} ({listed(images.classes)})" if images.classes else "unknown classes"
    )
    notes = reader.notes if isinstance(reader, FolderReader) else ""
    return f"{images.split}: {number}, {classes}{notes}"


def _open(source: Source, split: str, options: dict[str, object]) -> Images:
    check_folder(source)
    name, key, folder_of_name = source.name, key_of(source.name), Path(source.root or "", source.name)
    library, slash, _ = name.partition("/")
    if not source.needs_labels and is_unlabelled(source, split):
        check_no_pairs(Path(source.root or ""))
        return open_unlabelled(source, split, _suffixes(options))
    if (folder := _trained_folder(source)) is not None:
        return _open_folder(source, folder, split, options)
    if not name or (slash and library.lower() in TIMM):
        return _open_timm(source, split, options)
    if key == "digits" or key in SOURCES:
        _check_no_map(source)
    if key == "digits":
        return _open_digits(split)
    if key in SOURCES:
        # The published jobs keep this set alone in a folder of its own.
        files = folder_of_name if key == "svhn" and folder_of_name.is_dir() else source.root
        return read(replace(source, root=files), published_part(split))
    is_judged = any(is_split(folder_of_name / part) for part in names_of(split))
    if slash and folder_of_name.name.lower() in SOURCES and not is_judged:  # DIR/cifar10
        return _open(replace(source, name=folder_of_name.name, root=folder_of_name.parent), split, options)
    if folder_of_name.is_dir():
        return _open_folder(source, folder_of_name, split, options)  # it may have only splits for evaluation
    raise _no_dataset(source)


def _trained_folder(source: Source) -> Path | None:
    """The image folder of a data set: the root itself, or the first place for its name with a training split."""
    name, root, key = source.name, Path(source.root or ""), key_of(source.name)
    if not name or name.lower() in FOLDERS:
        return root if root.is_dir() else None
    if key == "country211":  # torchvision's has class folders too, but its own meaning of the splits' names
        return None
    places = [root / name, *(root / path for path in _PLACES.get(key, ()))]
    if key == "imagenet" and source.root is not None and _is_laid_out(root):
        places.append(root)
    return next((path for path in places if any((path / part).is_dir() for part in names_of("train"))), None)


def _no_dataset(source: Source) -> InputError:
    """The error for a name that means neither a folder nor a known data set."""
    name, root, key = source.name, Path(source.root or ""), key_of(source.name)
    if "/" in name:
        return no_folder(root / name)
    if key in _PLACES:
        return MissingData(
            f"data set '{name}' is an image folder, and '{root / _PLACES[key][-1]}' has no train/; put it there, or "
            "write it with stitchkit datasets prepare geospatial"
        )
    if key == "fmow":
        return InputError("data set 'fmow' belongs to WILDS, which is not supported; write it as an image folder")
    if name.lower() in TIMM:
        return InputError(f"data set '{name}' is one of timm's libraries; write it with a slash, such as {name}/NAME")
    otherwise = f"'{root / name}' is no folder either; stitchkit datasets list shows the names"
    return unknown("data set", name, sorted([*SOURCES, *SHORT, "digits"]), otherwise=otherwise)


def _is_laid_out(root: Path) -> bool:
    """Whether a folder is ImageNet in its usual form: class folders without torchvision's own files beside them."""
    judged = any(is_split(root / name) for name in names_of("validation"))
    return judged and (root / "train").is_dir() and not (root / "meta.bin").exists()


def _open_folder(source: Source, folder: Path, split: str, options: dict[str, object]) -> Images:
    check_no_pairs(folder, split.split("[")[0])
    with _explained(source, split):  # the class map may be unreadable
        return open_images(find_split(folder, split), class_map=source.class_map, suffixes=_suffixes(options))


def _suffixes(options: Mapping[str, object]) -> frozenset[str]:
    return frozenset(str(options.get("input_key") or "").lower().split(";")) - {""}


def _open_digits(split: str) -> Images:
    part = "train" if published_part(split) == "train" else "validation"
    digits = [(image, label) for _, image, label in read_digits(part)]
    return LabelledImages(digits, tuple(map(str, range(10))), part)


def _open_timm(source: Source, split: str, options: dict[str, object]) -> Images:
    """The first split of a data set under one of its usual names, by one of timm's readers."""
    if source.name:
        library = source.name.partition("/")[0].lower()
        check_installed([TIMM[library]], "" if library == "tfds" else "data", f"data set '{source.name}'")
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
    options |= {"download": source.download}
    if source.class_map:
        options["class_map"] = read_class_map(source.class_map)
    if not source.name.lower().startswith("tfds/"):  # whose images are arrays of colours
        options["input_img_mode"] = ""
    with _explained(source, split):
        dataset = open_timm(source.name, root=root, split=split, keys_advice=source.keys_advice, **options)
    reader = getattr(dataset, "reader", None)
    if reader is None:  # torchvision's have none
        _check_no_map(source)
        reader = dataset
    kind = StreamedImages if isinstance(dataset, IterableDataset) else LabelledImages
    return kind(reader, class_names(reader), split)


def _check_no_map(source: Source) -> None:
    if source.class_map:
        raise InputError(
            f"class map '{source.class_map}' is for class folders and timm's readers of records, and '{source}' has "
            "numbers of its own; remove --class-map"
        )


@contextmanager
def _explained(source: Source, split: str) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # readers from many libraries raise many types
        kind = MissingData if isinstance(error, OSError) else InputError
        raise kind(
            f"data set '{source}', split '{split}', cannot be opened in '{source.root}' ({one_line(error)}); "
            "check its name and folder" + ("" if source.download else f", or {source.advice}")
        ) from error


def agreed_classes(train: Images | None, judged: Images) -> tuple[str, ...]:
    """Class names of the two splits of a data set, in the order of their numbers; empty if no reader knows them."""
    if train is None:
        return judged.classes
    ours, theirs = (getattr(split, "reader", None) for split in (train, judged))
    if not (isinstance(ours, FolderReader) and isinstance(theirs, FolderReader)):
        # Names may be counted numbers, and a split may lack the last classes.
        return max(train.classes, judged.classes, key=len)
    check_folders(train.classes, judged.classes, f"the {judged.split} split of '{Path(theirs.root).parent}'")
    return train.classes


def check_folders(train: Sequence[str], judged: Sequence[str], where: str) -> None:
    """Compare the class folders of the training split and another one, which `where` describes in messages."""
    differences = {"lacks": set(train) - set(judged), "also has": set(judged) - set(train)}
    parts = [
        f"{verb} {counted(len(names), 'class folder')}: {listed(sorted(names))}"
        for verb, names in differences.items()
        if names
    ]
    if parts:
        raise InputError(f"{where} {' and '.join(parts)}; labels would not agree, so both must have the same folders")

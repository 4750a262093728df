"""Data sets by name: torchvision's, image folders, timm's data set strings and scikit-learn's digits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torchvision.datasets
from sklearn.model_selection import train_test_split
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, Subset
from torchvision.transforms import v2

from stitchkit.classes import in_order, number_in_order
from stitchkit.data.timm_readers import open_timm
from stitchkit.data.torchvision_sets import SHORT, SOURCES, UNNAMED
from stitchkit.errors import InputError, unknown
from stitchkit.paths import check_dataset, check_local

Split = Literal["train", "test"]
Transform = Callable[[Any], Any]

TEST_SHARE = 0.2
"""How much is for testing where no split is published."""

_MOST_CLASSES = 100_000  # greater numbers are times, or names of things

# Prefixes of timm's data set strings, and the packages that read them.
_TIMM = {
    "torch": "torchvision",
    "hfds": "datasets",
    "hfids": "datasets",
    "tfds": "tensorflow_datasets",
    "wds": "webdataset",
}


@dataclass
class LabelledImages(Dataset[tuple[Any, int]]):
    """Images with their labels.

    Args:
        samples: Gives `(PIL image, label)`.
        classes: Class names in the order of their numbers; empty where the reader does not know them.
        transform: What an RGB image goes through, e.g. of `torchvision.transforms.v2`.
    """

    samples: Any
    classes: tuple[str, ...]
    transform: Transform | None = None

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image, label = self.samples[index]
        image = image.convert("RGB")
        return image if self.transform is None else self.transform(image), int(label)


def open_dataset(
    name: str,
    *,
    root: str | Path | None,
    split: Split,
    transform: Transform | None = None,
    download: bool = False,
) -> Dataset[Any]:
    """Open one split of a data set; it has `.classes`, a tuple that is empty where the reader does not know them.

    Args:
        name: A folder with `train/` and `test/`, `val/` or `validation/`, by itself or under `root`; a torchvision
            class such as `CIFAR10`, in any spelling of case and hyphens; a timm string such as `hfds/timm/resisc45`;
            or `digits`. For `imagenet` the `root` itself may have `train/` and `val/`.
        root: The folder that its files are in.
        split: `train`, all images that are not for testing, or `test`.
        transform: What each image, a PIL image in RGB, goes through.
        download: Download what is not there, where the reader can.

    Raises:
        InputError: If there is no such data set, or its files are not there.
    """
    check_dataset(name, "data set")
    check_local(str(root or ""), "folder of data sets")
    place = Path(root or "", name)
    key = "".join(letter for letter in name.lower() if letter not in "-_ ")
    key = SHORT.get(key, key)
    if (place / "train").is_dir() and key != "country211":
        return _open_folder(place, split, transform)
    if key == "imagenet" and root is not None and _is_laid_out(Path(root)):
        return _open_folder(Path(root), split, transform)
    if name.partition("/")[0].lower() in _TIMM and "/" in name:
        return _open_timm(name, root, split, transform, download)
    if key == "digits":
        return _open_digits(split, transform)
    if key in SOURCES:
        samples, classes = read(key, root, split, download=download)
        return LabelledImages(samples, classes, transform)
    if "/" in name and not place.is_dir():
        raise InputError(f"data folder '{place}' does not exist; check the path")
    if place.is_dir():
        raise InputError(
            f"data folder '{place}' has no train/ folder; it needs train/ and val/, one folder a class in each"
        )
    raise unknown("data set", name, sorted([*SOURCES, *SHORT, "digits"]))


def read(
    key: str, root: str | Path | None, split: Split, *, download: bool, loader: Transform | None = None
) -> tuple[Any, tuple[str, ...]]:
    """Samples and class names of a torchvision data set.

    Args:
        key: Its key in `SOURCES`.
        root: The folder that its files are in.
        split: `train` or `test`.
        download: Download what is not there.
        loader: What becomes of the path of an image, for readers that have files; by default the image.

    Raises:
        InputError: If its files are not there.
    """
    source = SOURCES[key]
    if root is None:
        raise InputError(
            f"data set '{key}' is read from files; name the folder that holds {source.needs} (--data-path DIR)"
        )
    values = (None,) if source.argument is None else source.train if split == "train" else (source.test,)
    readers = [_create(key, root, value, download) for value in values]
    chosen = _own_split(readers[0], split) if source.argument is None else range(len(readers[0]))
    for reader in readers:
        if loader is not None and hasattr(reader, "loader"):
            reader.loader = loader
    samples = ConcatDataset(readers) if len(readers) > 1 else Subset(readers[0], chosen)
    return samples, _class_names(readers[0])


def _create(key: str, root: str | Path, value: object, download: bool) -> Any:
    """A reader of torchvision for one of its own splits."""
    source = SOURCES[key]
    options: dict[str, Any] = {} if source.argument is None else {source.argument: value}
    if not source.by_hand:
        options["download"] = download
    try:
        return getattr(torchvision.datasets, source.reader)(str(root), **options)
    except Exception as error:  # the readers and the network raise many kinds
        if source.by_hand:
            advice = "nothing downloads it, so put that there by hand"
        else:
            advice = "ask for the download again" if download else "put that there, or ask for it: download is off"
        reason = str(error).split("\n")[0]
        raise InputError(
            f"data set '{key}' cannot be read from '{root}' ({type(error).__name__}: {reason}), where it needs "
            f"{source.needs}; {advice}"
        ) from error


def _own_split(reader: Any, split: Split) -> Sequence[int]:
    """Numbers of the images of a split where none is published: one in five of each class is for testing."""
    decode, reader.loader = reader.loader, str
    paths = [reader[index] for index in range(len(reader))]
    reader.loader = decode
    # Readers list folders in the order of the disk; the split is to be the same everywhere.
    numbers = sorted(range(len(paths)), key=paths.__getitem__)
    rest, test = divide(numbers, [paths[number][1] for number in numbers], TEST_SHARE)
    return rest if split == "train" else test


def divide(numbers: Sequence[int], labels: Sequence[int], share: float) -> tuple[list[int], list[int]]:
    """The rest of some images and a share of each class of them, drawn with a fixed seed.

    Args:
        numbers: The images.
        labels: The label of each.
        share: How much to draw, between 0 and 1.

    Raises:
        InputError: If there are too few images.
    """
    try:
        rest, drawn = train_test_split(numbers, test_size=share, stratify=labels, random_state=0)
    except ValueError as error:
        raise InputError(
            f"{len(numbers)} images are too few to divide by class: {error}; add the missing ones"
        ) from error
    return rest, drawn


def _class_names(reader: Any) -> tuple[str, ...]:
    """Class names; numbers where the reader has none, and nothing where the classes are not known."""
    if names := getattr(reader, "classes", None):
        # ImageNet has all synonyms of a class.
        return tuple(name if isinstance(name, str) else name[0] for name in names)
    if numbers := getattr(reader, "class_to_idx", None):
        return tuple(sorted(numbers, key=numbers.__getitem__))
    count = UNNAMED.get(type(reader).__name__) or _count_labels(reader)
    return tuple(f"{number:0{len(str(count - 1))}d}" for number in range(count))


def _count_labels(reader: Any) -> int:
    """How many classes a column of whole numbers in an Arrow table has; 0 where there is none, or it has no classes."""
    table: Any = getattr(reader, "dataset", None)
    if not hasattr(table, "unique"):
        return 0
    kind = str(getattr(table.features.get(reader.label_key), "dtype", ""))
    labels = table.unique(reader.label_key) if kind.startswith(("int", "uint", "bool")) else []
    if not labels or None in labels or min(labels) < 0 or max(labels) >= _MOST_CLASSES:
        return 0
    return 1 + int(max(labels))  # logits are found by number, gaps or not


def _is_laid_out(root: Path) -> bool:
    """Whether a folder is ImageNet as most have it; torchvision's own reader leaves `meta.bin` beside its folders."""
    validation = any((root / name).is_dir() for name in ("val", "validation"))
    return validation and (root / "train").is_dir() and not (root / "meta.bin").exists()


def _open_folder(folder: Path, split: Split, transform: Transform | None) -> LabelledImages:
    """A split of an image folder."""
    names = ("train",) if split == "train" else ("test", "validation", "val", "valid")
    # ImageNet's test/ has images and no classes.
    found = [folder / name for name in names if any(place.is_dir() for place in (folder / name).glob("*"))]
    if not found:
        raise InputError(f"data folder '{folder}' has no {' or '.join(names)}/ folder with one folder a class in it")
    try:
        samples = torchvision.datasets.ImageFolder(str(found[0]))
    except FileNotFoundError as error:
        raise InputError(f"{error}; put images there, or remove the folder") from error
    number_in_order(samples)
    train = tuple(in_order(place.name for place in (folder / "train").iterdir() if place.is_dir()))
    if tuple(samples.classes) != train:
        odd = sorted(set(samples.classes) ^ set(train))
        raise InputError(f"'{found[0]}' and train/ differ in the class folders {', '.join(odd[:5])}; make them equal")
    return LabelledImages(samples, train, transform)


def _open_digits(split: Split, transform: Transform | None) -> LabelledImages:
    """scikit-learn's digits, as `stitchkit demo-data` splits them."""
    from stitchkit.data.digits import read_digits

    samples = [(image, label) for _, image, label in read_digits("train" if split == "train" else "validation")]
    return LabelledImages(samples, tuple(map(str, range(10))), transform)


def _open_timm(
    name: str, root: str | Path | None, split: Split, transform: Transform | None, download: bool
) -> Dataset[Any]:
    """A timm data set."""
    if split == "train" or name.lower().startswith("torch/"):
        names = ["train" if split == "train" else "validation"]
    else:
        names = ["test", "validation"]
    errors = []
    for candidate in names:
        try:
            samples, classes = read_timm(name, root, candidate, download=download)
        except InputError as error:
            errors.append(error)
            continue
        if isinstance(samples, IterableDataset):
            samples.transform = v2.Compose([v2.RGB(), *([transform] if transform else [])])  # type: ignore[attr-defined]
            samples.classes = classes  # type: ignore[attr-defined]
            return samples
        # The test images of a competition have no labels.
        if split == "train" or samples[0][1] != -1:
            return LabelledImages(samples, classes, transform)
        errors.append(InputError(f"the {candidate} images of '{name}' have no labels; choose another data set"))
    raise errors[-1]


def read_timm(name: str, root: str | Path | None, split: str, *, download: bool) -> tuple[Any, tuple[str, ...]]:
    """Samples and class names of a timm data set string.

    Args:
        name: For example `hfds/timm/resisc45`.
        root: The folder that its files are in, or are to be.
        split: A split as the data set names it.
        download: Download what is not there.

    Raises:
        InputError: If it cannot be opened.
    """
    package = _TIMM[name.partition("/")[0].lower()]
    if find_spec(package) is None:
        raise InputError(f"data set '{name}' is read by the package {package}; pip install {package}")
    place = None if root is None else str(root)
    try:
        samples = open_timm(name, root=place, split=split, is_training=split == "train", download=download)
    except InputError:
        raise
    except Exception as error:  # the readers of many libraries raise many kinds
        reason = str(error).split("\n")[0]
        raise InputError(
            f"data set '{name}', split '{split}', cannot be opened in '{root}' ({type(error).__name__}: {reason}); "
            "check its name and folder" + ("" if download else ", or ask for the download, which is off")
        ) from error
    if type(samples) is torchvision.datasets.ImageFolder:  # published sets are subclasses of it
        number_in_order(samples)
    return samples, _class_names(getattr(samples, "reader", samples))

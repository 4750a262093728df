"""The source of a data set, and the data sets known by name; without torch, so that mistakes are found at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from stitchkit.data.split_rule import is_split, names_of
from stitchkit.errors import InputError
from stitchkit.paths import asked
from stitchkit.settings.tasks import DENSE


class MissingData(InputError):
    """Data that are not on this machine, though they may be on another or be downloaded."""


TIMM = {
    "torch": "torchvision", "hfds": "datasets", "hfids": "datasets", "tfds": "tensorflow_datasets", "wds": "webdataset"
}  # fmt: skip
"""Prefixes of timm's data set strings, and the packages that read them."""
FOLDERS = ("torch/image_folder", "torch/folder")
"""timm's strings for image folders."""


class VisionSet(NamedTuple):
    """One of torchvision's data sets.

    Args:
        argument: The argument that chooses a split; None if no split is published, so that we make one.
        train: Its values for all images that are not for testing.
        test: Its value for the images that are; `val` if only that has labels.
        num_classes: The number of its classes, if its class does not name them.
    """

    reader: str
    argument: str | None
    train: tuple[object, ...]
    test: object
    needs: str
    by_hand: bool = False
    options: Mapping[str, str] = MappingProxyType({})
    num_classes: int = 0


_ROWS = (
    VisionSet("CIFAR10", "train", (True,), False, "cifar-10-batches-py/"),
    VisionSet("CIFAR100", "train", (True,), False, "cifar-100-python/"),
    VisionSet("MNIST", "train", (True,), False, "MNIST/raw/"),
    VisionSet("FashionMNIST", "train", (True,), False, "FashionMNIST/raw/"),
    VisionSet("KMNIST", "train", (True,), False, "KMNIST/raw/"),
    VisionSet("EMNIST", "train", (True,), False, "EMNIST/raw/", options={"split": "digits"}),
    VisionSet("USPS", "train", (True,), False, "usps.bz2 and usps.t.bz2", num_classes=10),
    VisionSet("SVHN", "split", ("train",), "test", "train_32x32.mat and test_32x32.mat", num_classes=10),
    VisionSet("GTSRB", "split", ("train",), "test", "gtsrb/GTSRB/ and gtsrb/GT-final_test.csv", num_classes=43),
    VisionSet("Food101", "split", ("train",), "test", "food-101/"),
    VisionSet("STL10", "split", ("train",), "test", "stl10_binary/", num_classes=10),
    VisionSet("DTD", "split", ("train", "val"), "test", "dtd/dtd/"),
    VisionSet("Flowers102", "split", ("train", "val"), "test", "flowers-102/"),
    VisionSet("RenderedSST2", "split", ("train", "val"), "test", "rendered-sst2/"),
    VisionSet("PCAM", "split", ("train", "val"), "test", "pcam/", num_classes=2),
    VisionSet("Country211", "split", ("train", "valid"), "test", "country211/"),
    VisionSet("FGVCAircraft", "split", ("trainval",), "test", "fgvc-aircraft-2013b/"),
    VisionSet("OxfordIIITPet", "split", ("trainval",), "test", "oxford-iiit-pet/"),
    VisionSet("Imagenette", "split", ("train",), "val", "imagenette2/"),
    VisionSet("Places365", "split", ("train-standard",), "val", "data_large_standard/, val_large/ and the file lists"),
    VisionSet("EuroSAT", None, (), None, "eurosat/2750/"),
    VisionSet("SUN397", None, (), None, "SUN397/"),
    VisionSet(
        "FER2013", "split", ("train",), "test", "fer2013/ with fer2013.csv or icml_face_data.csv", by_hand=True,
        num_classes=7,
    ),
    VisionSet(
        "StanfordCars", "split", ("train",), "test",
        "stanford_cars/ with cars_train/, cars_test/, devkit/ and cars_test_annos_withlabels.mat", by_hand=True,
    ),
    VisionSet(
        "ImageNet", "split", ("train",), "val",
        "train/ and val/ with one folder per class in each, or ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and "
        "ILSVRC2012_devkit_t12.tar.gz", by_hand=True,
    ),
)  # fmt: skip
SOURCES = {source.reader.lower(): source for source in _ROWS} | {
    f"emnist{split}": VisionSet("EMNIST", "train", (True,), False, "EMNIST/raw/", options={"split": split})
    for split in ("byclass", "bymerge", "balanced", "letters", "digits", "mnist")
}
"""torchvision's data sets by name."""

SHORT = {
    "aircraft": "fgvcaircraft", "cars": "stanfordcars", "flowers": "flowers102", "imagenet1k": "imagenet",
    "oxfordpets": "oxfordiiitpet", "pets": "oxfordiiitpet",
}  # fmt: skip
"""Their other names."""


@dataclass(frozen=True)
class Source:
    """The source of a data set, and options for reading it.

    Args:
        name: Empty for the image folder `root`; a folder, alone or under `root`; a torchvision class such as
            `CIFAR10`, in any spelling of case and hyphens; a timm string such as `hfds/timm/resisc45`; or `digits`. For
            `imagenet` the `root` itself may have `train/` and `val/`.
        class_map: File that maps names of class folders to numbers.
        options: Further arguments of timm's readers; for image folders only `input_key`, suffixes separated by `;`.
        advice: What to do if missing files are not downloaded.
        keys_advice: What to do if a Hugging Face data set has columns of other names.
        needs_labels: Whether images must have labels; if not, those of `is_unlabelled` will do.
    """

    name: str
    root: str | Path | None = None
    download: bool = False
    class_map: str = ""
    options: tuple[tuple[str, object], ...] = ()
    advice: str = "add --download"
    keys_advice: str = "rename those of the images and labels to image and label"
    needs_labels: bool = True

    def __str__(self) -> str:
        return self.name or str(self.root)


def check_folder(source: Source) -> None:
    """Refuse a folder that does not exist, before its lack shows up in a library's message."""
    root, key, library = Path(source.root or ""), key_of(source.name), source.name.partition("/")[0].lower()
    is_made = (source.download and source.name) or (library in TIMM and source.name.lower() not in FOLDERS)
    if root.exists() or is_made or key == "digits":
        return
    if key in SOURCES:
        raise MissingData(
            f"data folder '{root}' does not exist{asked(root)}; it must contain {SOURCES[key].needs}; check the path"
            + ("" if SOURCES[key].by_hand else f", or {source.advice}")
        )
    otherwise = "" if source.needs_labels or source.name else ", or be a folder or a .txt list of images without labels"
    raise MissingData(f"{no_folder(root)}{otherwise}")


def check_no_pairs(root: Path, *splits: str) -> None:
    """Refuse images with masks or depth maps, whose folders would pass for classes: in usual and these splits."""
    names = dict.fromkeys([*splits, *names_of("train"), *names_of("validation")])
    around = () if any(is_split(root / name) for name in names) else (root,)
    for folder_of_split in (*around, *(root / name for name in names)):
        targets = {task: of.folder for task, of in DENSE.items() if (folder_of_split / of.folder).is_dir()}
        if targets and (folder_of_split / "images").is_dir():
            within = f"'{root}'" if folder_of_split == root else f"'{root}': {folder_of_split.name}/"
            beside = " and ".join(f"{folder}/" for folder in targets.values())
            tasks = " or ".join(f"--task {task}" for task in targets)
            raise InputError(
                f"data folder {within} has images/ beside {beside}, which are not classes of images; add {tasks}, or "
                f"in a job {tasks.replace('--task ', 'task: ')}"
            )


def check_pair_folder(root: Path, split: str, task: str) -> None:
    """Refuse a folder for dense prediction that does not exist."""
    if not root.is_dir():
        kind, fault = (InputError, "is not a folder") if root.exists() else (MissingData, "does not exist")
        raise kind(f"data folder '{root}' {fault}{asked(root)}; {expected_pairs(split, task)}")


def expected_pairs(split: str, task: str) -> str:
    """What a folder for dense prediction must have, in words."""
    folder, published = DENSE[task].folder, DENSE[task].published
    return f"it needs {split}/images/ and {split}/{folder}/, or images/{split}/ and {folder}/{split}/, or {published}"


def is_list(path: str | Path) -> bool:
    """Whether a path is a list of images: a file with the suffix `.txt`."""
    return Path(path).suffix.lower() == ".txt" and Path(path).is_file()


def is_unlabelled(source: Source, split: str = "train") -> bool:
    """Whether a source is a list of images, or a folder without any usual split; other splits have labels."""
    if source.name or not source.root:
        return False
    root, usual = Path(source.root), {*names_of("train"), *names_of("validation")}
    return split in usual and (is_list(root) or (root.is_dir() and not any(is_split(root / name) for name in usual)))


def key_of(name: str) -> str:
    """A data set's name as in `SOURCES`, whatever its spelling."""
    key = "".join(letter for letter in name.lower() if letter not in "-_ ")
    return SHORT.get(key, key)


def no_folder(folder: Path) -> MissingData:
    """The error for an image folder that does not exist."""
    return MissingData(
        f"data folder '{folder}' does not exist{asked(folder)}; it must have train/ and validation/, with one folder "
        "per class in each"
    )

"""torchvision's data sets: how each spells its splits, and what its folder holds."""

from __future__ import annotations

from typing import Any, NamedTuple


class Source(NamedTuple):
    """How torchvision spells one of its data sets.

    Args:
        reader: Name of its class.
        argument: The argument that chooses a split; None where there are no splits, and ours is made.
        train: Its values for all images that are not for testing.
        test: Its value for the images that are; of `val` where only that has labels.
        needs: What its folder holds.
        by_hand: torchvision cannot download it.
    """

    reader: str
    argument: str | None
    train: tuple[Any, ...]
    test: Any
    needs: str
    by_hand: bool = False


_ROWS = (
    Source("CIFAR10", "train", (True,), False, "cifar-10-batches-py/"),
    Source("CIFAR100", "train", (True,), False, "cifar-100-python/"),
    Source("MNIST", "train", (True,), False, "MNIST/raw/"),
    Source("FashionMNIST", "train", (True,), False, "FashionMNIST/raw/"),
    Source("KMNIST", "train", (True,), False, "KMNIST/raw/"),
    Source("USPS", "train", (True,), False, "usps.bz2 and usps.t.bz2"),
    Source("SVHN", "split", ("train",), "test", "train_32x32.mat and test_32x32.mat"),
    Source("GTSRB", "split", ("train",), "test", "gtsrb/GTSRB/ and gtsrb/GT-final_test.csv"),
    Source("Food101", "split", ("train",), "test", "food-101/"),
    Source("STL10", "split", ("train",), "test", "stl10_binary/"),
    Source("DTD", "split", ("train", "val"), "test", "dtd/dtd/"),
    Source("Flowers102", "split", ("train", "val"), "test", "flowers-102/"),
    Source("RenderedSST2", "split", ("train", "val"), "test", "rendered-sst2/"),
    Source("Country211", "split", ("train", "valid"), "test", "country211/"),
    Source("FGVCAircraft", "split", ("trainval",), "test", "fgvc-aircraft-2013b/"),
    Source("OxfordIIITPet", "split", ("trainval",), "test", "oxford-iiit-pet/"),
    Source("Imagenette", "split", ("train",), "val", "imagenette2/"),
    Source("Places365", "split", ("train-standard",), "val", "data_large_standard/, val_large/ and the file lists"),
    Source("EuroSAT", None, (), None, "eurosat/2750/"),
    Source("SUN397", None, (), None, "SUN397/"),
    Source(
        "StanfordCars", "split", ("train",), "test",
        "stanford_cars/ with cars_train/, cars_test/, devkit/ and cars_test_annos_withlabels.mat", by_hand=True,
    ),
    Source(
        "ImageNet", "split", ("train",), "val",
        "train/ and val/ with one folder a class in each, or ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and "
        "ILSVRC2012_devkit_t12.tar.gz", by_hand=True,
    ),
)  # fmt: skip
SOURCES = {source.reader.lower(): source for source in _ROWS}
"""torchvision's data sets by name."""

SHORT = {"aircraft": "fgvcaircraft", "cars": "stanfordcars", "flowers": "flowers102", "pets": "oxfordiiitpet"}
"""Other names that they go by."""

UNNAMED = {"GTSRB": 43, "STL10": 10, "SVHN": 10, "USPS": 10}
"""Numbers of classes of the readers that give them no names."""

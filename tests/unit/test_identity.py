"""The digest of a split tells changed images apart, and takes a copy for the same."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image

from stitchkit.data.dense.pairs import open_pairs
from stitchkit.data.identity import images_digest
from stitchkit.data.open_dataset import open_dataset
from stitchkit.data.source import Source
from stitchkit.data.unreadable import CheckedImages
from tests import archives


def folder_digest(folder, **options):
    images = open_dataset(Source("", folder, **options), "validation")
    return images_digest(CheckedImages(images, num_classes=0, is_training=False))


def paint(path, color):
    """A raw image, whose size in bytes is the same in any color."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), color).save(path)


@pytest.mark.parametrize("flat", [False, True], ids=["classes", "no labels"])
def test_files_are_known_by_names_sizes_and_content(flat, tmp_path):
    folder, options = tmp_path / "data", {"needs_labels": not flat}
    place = folder / ("validation" if flat else "validation/cat")
    for number in range(5):
        paint(place / f"{number}.bmp", (number, 0, 0))
    if flat:
        shutil.copytree(place, folder / "train")
    first = folder_digest(folder, **options)
    copied = shutil.copytree(folder, tmp_path / "copy")
    os.utime(copied / place.relative_to(folder) / "1.bmp", (1, 1))
    assert folder_digest(copied, **options) == first
    paint(place / "3.bmp", (0, 9, 0))
    changed = folder_digest(folder, **options)
    assert changed != first, "its size is the same"
    (place / "3.bmp").rename(place / "33.bmp")
    assert folder_digest(folder, **options) not in (first, changed)


def test_few_of_many_files_are_read(tmp_path, monkeypatch):
    """The sizes of all are compared."""
    for number in range(30):
        paint(tmp_path / f"validation/cat/{number:02d}.bmp", (number, 0, 0))
    monkeypatch.setattr("stitchkit.data.identity._MOST_READ", 10)
    first = folder_digest(tmp_path)
    paint(tmp_path / "validation/cat/01.bmp", (0, 9, 0))
    assert folder_digest(tmp_path) == first, "neither read nor of another size"
    paint(tmp_path / "validation/cat/03.bmp", (0, 9, 0))
    second = folder_digest(tmp_path)
    assert second != first
    with (tmp_path / "validation/cat/01.bmp").open("ab") as file:
        file.write(b"\0")
    assert folder_digest(tmp_path) != second


def test_labels_count(tmp_path):
    for name in ("cat", "dog"):
        paint(tmp_path / f"validation/{name}/1.bmp", (0, 0, 0))
    first = folder_digest(tmp_path)
    (tmp_path / "map.txt").write_text("dog\ncat\n")
    assert folder_digest(tmp_path, class_map=str(tmp_path / "map.txt")) != first


def test_masks_count(tmp_path):
    for split in ("train", "validation"):
        paint(tmp_path / f"{split}/images/1.png", (1, 2, 3))
        (tmp_path / f"{split}/masks").mkdir()
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / f"{split}/masks/1.png")

    def digest():
        return images_digest(open_pairs(tmp_path, "validation", "segmentation", num_classes=2))

    first = digest()
    Image.fromarray(np.ones((4, 4), np.uint8)).save(tmp_path / "validation/masks/1.png")
    assert digest() != first


def test_images_that_are_no_files_are_decoded(tmp_path):
    digests = []
    for number in range(2):
        archives.write_mnist(tmp_path / str(number))
        digests += [images_digest(open_dataset(Source("mnist", tmp_path / str(number)), "test")) for _ in range(2)]
    assert digests[0] == digests[1] != digests[2] == digests[3]


def test_a_stream_is_known_by_its_shards(tmp_path):
    pytest.importorskip("webdataset")
    digests = []
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        archives.write_shards(tmp_path / str(number))
        digests += [images_digest(open_dataset(Source("wds/", tmp_path / str(number)), "validation")) for _ in range(2)]
    assert digests[0] == digests[1] != digests[2] == digests[3]


def test_rows_of_hugging_face_are_known_by_a_sample(tmp_path):
    pytest.importorskip("datasets")
    digests = []
    for number in range(2):
        name = archives.write_labels(tmp_path / str(number), "int64", [0, 1], [0, 1])
        digests += [images_digest(open_dataset(Source(name, tmp_path / "cache"), "test")) for _ in range(2)]
    assert digests[0] == digests[1] != digests[2] == digests[3]

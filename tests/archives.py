"""Miniature copies of published data sets, in the formats that torchvision reads."""

from __future__ import annotations

import io
import json
import pickle
import struct
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

RANDOM = np.random.default_rng(0)


def pixels(*shape: int) -> np.ndarray:
    return RANDOM.integers(0, 256, shape).astype(np.uint8)


def save(path: Path, *shape: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(*(shape or (8, 8, 3)))).save(path)


def write_cifar10(root: Path) -> None:
    """Ten images to train, two of each class; four to test."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for number in range(1, 6):
        batch = {"data": pixels(2, 3072), "labels": [2 * number - 2, 2 * number - 1]}
        (folder / f"data_batch_{number}").write_bytes(pickle.dumps(batch))
    (folder / "test_batch").write_bytes(pickle.dumps({"data": pixels(4, 3072), "labels": [3, 1, 0, 9]}))
    names = [f"class {number}" for number in range(10)]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))


def write_mnist(root: Path) -> None:
    """Twenty grey images to train, ten to test."""
    for name, count in (("train", 20), ("t10k", 10)):
        write_idx(root / "MNIST/raw", name, count)


def write_idx(folder: Path, name: str, count: int) -> None:
    """Grey images and their labels in the format of MNIST."""
    folder.mkdir(parents=True, exist_ok=True)
    labels = (np.arange(count) % 10).astype(np.uint8)
    images = struct.pack(">IIII", 0x803, count, 28, 28) + pixels(count, 28, 28).tobytes()
    (folder / f"{name}-images-idx3-ubyte").write_bytes(images)
    (folder / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, count) + labels.tobytes())


def write_svhn(root: Path, *, train: int = 30, test: int = 10) -> None:
    """The label 10 is the digit 0, as published."""
    root.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", train), ("test", test)):
        labels = (np.arange(count) % 10 + 1).astype(np.uint8)[:, None]
        savemat(root / f"{split}_32x32.mat", {"X": pixels(32, 32, 3, count), "y": labels})


def write_gtsrb(root: Path) -> None:
    """43 classes, two images each to train, one to test."""
    folder = root / "gtsrb"
    rows = ["Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"]
    for label in range(43):
        for number in range(2):
            save(folder / f"GTSRB/Training/{label:05d}/{number:05d}.ppm")
        save(folder / f"GTSRB/Final_Test/Images/{label:05d}.ppm")
        rows.append(f"{label:05d}.ppm;8;8;1;1;7;7;{label}")
    (folder / "GT-final_test.csv").write_text("\n".join(rows))


def write_dtd(folder: Path, *, classes: int = 3, count: int = 2) -> None:
    """The folder `dtd` of its archive, `count` images a class in each of three splits."""
    for split in ("train", "val", "test"):
        names = [f"class{label}/{split}_{number}.jpg" for label in range(classes) for number in range(count)]
        for name in names:
            save(folder / "images" / name)
        (folder / "labels").mkdir(exist_ok=True)
        (folder / f"labels/{split}1.txt").write_text("\n".join(names) + "\n")


def write_eurosat(root: Path, *, count: int = 10) -> None:
    for name in ("Forest", "River", "Highway"):
        for number in range(1, count + 1):
            save(root / f"eurosat/2750/{name}/{name}_{number}.jpg")


def write_cars(root: Path) -> None:
    """Two classes, one with a slash in its name as published."""
    folder = root / "stanford_cars"
    kind = [("class", "i4"), ("fname", "O")]
    for split, place in (("train", "devkit/cars_train_annos.mat"), ("test", "cars_test_annos_withlabels.mat")):
        rows = np.array([(number % 2 + 1, f"{number:05d}.jpg") for number in range(4)], dtype=kind)
        for row in rows:
            save(folder / f"cars_{split}" / row["fname"])
        (folder / place).parent.mkdir(exist_ok=True)
        savemat(folder / place, {"annotations": rows})
    names = np.array(["Ram C/V Van 2012", "Audi A5"], dtype=object)
    savemat(folder / "devkit/cars_meta.mat", {"class_names": names})


def write_folder(folder: Path, *splits: str, count: int = 3, suffix: str = "png") -> Path:
    for split in splits:
        for label in ("cat", "dog"):
            for number in range(count):
                save(folder / split / label / f"{split or 'image'}_{number}.{suffix}")
    return folder


def write_labels(folder: Path, kind: str, train: list[Any], test: list[Any]) -> str:
    """A Hugging Face set whose labels have no names; its name as a timm string."""
    datasets = pytest.importorskip("datasets")
    save(folder / "image.png")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value(kind)})
    for split, labels in (("train", train), ("test", test)):
        rows = {"image": [str(folder / "image.png")] * len(labels), "label": labels}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"hub/{split}.parquet")
    return f"hfds/{folder / 'hub'}"


def write_shards(folder: Path) -> None:
    """A webdataset of grey images."""
    splits = {}
    for split, count in (("train", 6), ("validation", 3)):
        with tarfile.open(folder / f"{split}-0.tar", "w") as tar:
            for name, content in _entries(count):
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
        splits[split] = {"name": split, "filenames": [f"{split}-0.tar"], "shard_lengths": [count], "num_samples": count}
    (folder / "_info.json").write_text(json.dumps({"splits": splits}))


def _entries(count: int) -> Iterator[tuple[str, bytes]]:
    for number in range(count):
        picture = io.BytesIO()
        Image.fromarray(pixels(8, 8)).save(picture, "PNG")
        yield f"{number:04d}.png", picture.getvalue()
        yield f"{number:04d}.cls", b"1"

"""Predictions of one stitch for the images of a folder."""

from __future__ import annotations

import csv
import logging
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from PIL.Image import Image
from timm.data import ImageNetInfo, create_transform
from torch import nn
from torch.utils.data import DataLoader, Dataset

from stitchkit.classes import trained_classes
from stitchkit.data.loader_processes import explained, outlive_signals, usable_cores
from stitchkit.data.unreadable import open_image
from stitchkit.display import counted, listed
from stitchkit.distributed import World
from stitchkit.errors import InputError, one_line
from stitchkit.files import replacing
from stitchkit.networks.data_config import KEYS, DataConfig
from stitchkit.progress import progress
from stitchkit.ship.description import gives_features, is_dense, no_classes, no_pixels
from stitchkit.ship.stitch_files import open_exported

_logger = logging.getLogger(__name__)

_IMAGENET = 1000


class Transform:
    """The preparation of images as for evaluation; a class, because loader processes pickle it."""

    def __init__(self, data_config: DataConfig):
        self._mode = "L" if data_config["input_size"][0] == 1 else "RGB"
        self._transform = create_transform(**data_config, is_training=False)

    def __call__(self, image: Image) -> torch.Tensor:
        """The input `[C, H, W]` of a network for an image."""
        found: torch.Tensor = self._transform(image.convert(self._mode))
        return found


def described_classes(names: Sequence[str], count: int) -> list[str]:
    """Names of the classes, with descriptions of ImageNet's synsets and numbers for unknown classes."""
    if len(names) != count:
        names = ImageNetInfo().label_names() if count == _IMAGENET else [f"class {number}" for number in range(count)]
    if not all(re.fullmatch(r"n\d{8}", name) for name in names):
        return list(names)
    info = ImageNetInfo()
    with suppress(KeyError):  # a name that only looks like a synset
        return [f"{info.label_name_to_description(name)} ({number})" for number, name in enumerate(names)]
    return list(names)


def likeliest(logits: torch.Tensor, names: Sequence[str], number: int) -> list[tuple[str, float]]:
    """The classes with the highest probabilities, at most `number`, for the logits `[num_classes]` of an image."""
    best = logits.float().softmax(0).topk(min(number, len(logits)))
    return [(names[place], share) for place, share in zip(best.indices.tolist(), best.values.tolist(), strict=True)]


@dataclass(frozen=True)
class Predictor:
    """A network with its data config and its class names, empty if unknown."""

    network: nn.Module
    data_config: DataConfig
    classes: Sequence[str]

    @classmethod
    def open(cls, path: str) -> Predictor:
        """The predictor of an exported `.safetensors` or `.onnx` file."""
        network, about = open_exported(path)
        if gives_features(about):
            raise no_classes(f"'{path}'")
        if is_dense(about):
            raise no_pixels(f"'{path}'")
        try:
            data_config = cast(DataConfig, {key: about["input"][key] for key in KEYS})
            Transform(data_config)
        except Exception as error:  # anybody can write the description of an ONNX file
            raise InputError(
                f"'{path}' does not say how to prepare images ({one_line(error)}); give a file of stitchkit export"
            ) from error
        return cls(network, data_config, (trained_classes(about) or [[]])[0])


class _Files(Dataset[tuple[int, torch.Tensor, str]]):
    """Image files as their number, input and fault; an unreadable one has a blank input."""

    def __init__(self, paths: Sequence[str], data_config: DataConfig):
        self._paths = paths
        self._transform = Transform(data_config)
        self._blank = torch.zeros(*data_config["input_size"])

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> tuple[int, torch.Tensor, str]:
        path = self._paths[index]
        try:
            return index, self._transform(open_image(path)), ""
        except Exception as error:  # decoders raise many types
            # The cause alone, without the path, which the message names.
            cause = one_line(error.__cause__ or error).removeprefix("InputError: ")
            return index, self._blank, cause.replace(repr(path), "").rstrip(" :")


@torch.inference_mode()
def predict(
    predictor: Predictor, folder: str | Path, paths: Sequence[str], output: Path, *, device: torch.device,
    top: int = 5, batch_size: int = 32, workers: int = 0,
) -> int:  # fmt: skip
    """Write the likeliest classes of images in a folder as CSV, one line for each; unreadable ones have no class.

    Returns:
        The number of images that cannot be read, which are logged.
    """
    network = predictor.network.to(device).eval()
    count = network(torch.zeros(1, *predictor.data_config["input_size"], device=device)).shape[1]
    names, places = described_classes(predictor.classes, count), range(2, min(top, count) + 1)
    head = ["path", "class", "probability", *(f"{key}_{place}" for place in places for key in ("class", "probability"))]
    workers = min(workers, usable_cores())  # torch warns of more
    loader = DataLoader(_Files(paths, predictor.data_config), batch_size, num_workers=workers)
    outlive_signals(loader)
    unreadable: dict[str, str] = {}
    batches = progress(loader, World(0, 1, device), "predict", unit="batches")
    with (
        explained("lower --workers"),
        replacing(output) as draft,
        draft.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(head)
        for numbers, images, faults in batches:
            for number, logits, fault in zip(numbers.tolist(), network(images.to(device)), faults, strict=True):
                path = os.path.relpath(paths[number], folder)
                cells = [cell for name, share in likeliest(logits, names, top) for cell in (name, f"{share:.6f}")]
                writer.writerow([path, *([""] * len(cells) if fault else cells)])
                if fault:
                    unreadable[path] = fault
    if unreadable:
        shown, first = listed([*unreadable]), next(iter(unreadable.values()))
        said = "%d of %s cannot be read: %s; the first: %s"
        _logger.warning(said, len(unreadable), counted(len(paths), "image"), shown, first)
    return len(unreadable)

"""Maps by one stitch for the images of a folder: the class or the depth of every pixel, as PNG files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from stitchkit.data.decoding import Change, Decoding
from stitchkit.data.dense.maps import read_upright
from stitchkit.data.dense.transforms import PairTransform, evaluation_transform
from stitchkit.data.loader_processes import explained
from stitchkit.distributed import World
from stitchkit.errors import InputError
from stitchkit.files import filling
from stitchkit.progress import progress
from stitchkit.ship.predictors import Files, MapPredictor, report_changes, report_unreadable
from stitchkit.tasks.table import TASKS
from stitchkit.tasks.windows import Windows


def _read(path: str, decoding: Decoding, transform: PairTransform) -> tuple[torch.Tensor, Change]:
    """A normalised image `[3, H, W]`."""
    image, change = read_upright(path, path, decoding)
    return transform(image, np.zeros(image.size[::-1]))[0], change


def places_of(folder: str | Path, paths: Sequence[str]) -> list[Path]:
    """Where the maps of images go, relative to their folder: as the images lie in theirs, ending with `.png`."""
    images: dict[Path, str] = {}
    for path in paths:
        name = os.path.relpath(path, folder)
        file = Path(name).with_suffix(".png")
        if file in images:
            raise InputError(f"'{images[file]}' and '{name}' would both have the map '{file}'; rename one of them")
        images[file] = name
    return [*images]


@torch.inference_mode()
def predict_maps(
    predictor: MapPredictor, folder: str | Path, paths: Sequence[str], output: Path, *, device: torch.device,
    batch_size: int = 32, workers: int = 0,
) -> int:  # fmt: skip
    """Write each image's map at the image's size into a new folder, and return the number of unreadable images.

    Classes are values of a palette, as in masks; depths are 16-bit millimetres. Names that clash and outputs that are
    not finite raise an `InputError`, and leave no folder.
    """
    places, network = places_of(folder, paths), predictor.network.to(device).eval()
    _, height, width = predictor.data_config["input_size"]
    windows = Windows.of_task(predictor.dense, (height, width))
    config, changes, unreadable = predictor.data_config, list[int](), dict[str, str]()
    decoding = Decoding.of(config)
    transform = evaluation_transform(predictor.dense.task, mean=config["mean"], std=config["std"])
    photos = Files(paths, partial(_read, decoding=decoding, transform=transform), torch.empty(0))
    loader = photos.loader(None, workers)
    with explained("lower --workers"), filling(output) as unfinished:
        for number, image, change, fault in progress(loader, World(0, 1, device), "predict", unit="images"):
            changes.append(change)
            if fault:
                unreadable[os.path.relpath(paths[number], folder)] = fault
                continue
            cut = windows.cut([image.to(device)])
            outputs = torch.cat([network(part) for part in cut.portions(batch_size)])
            (merged,) = cut.merged(outputs, [image[0]])
            if not merged.isfinite().all():  # the class of NaN would be 0
                raise InputError(f"the outputs for '{paths[number]}' are not finite; the weights may have diverged")
            map_file = unfinished / places[number]
            map_file.parent.mkdir(parents=True, exist_ok=True)
            TASKS[predictor.dense.task].picture(merged).save(map_file)
    report_unreadable(unreadable, len(paths))
    report_changes(changes, decoding)
    return len(unreadable)

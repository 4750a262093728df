"""Maps by one stitch for the images of a folder: the class or the depth of every pixel, as PNG files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from stitchkit.data.decoding import Decoding
from stitchkit.data.dense.maps import read_upright
from stitchkit.data.dense.transforms import evaluation_transform
from stitchkit.data.loader_processes import explained, outlive_signals, usable_cores
from stitchkit.distributed import World
from stitchkit.errors import InputError
from stitchkit.files import filling
from stitchkit.progress import progress
from stitchkit.ship.predict import report_changes, report_unreadable
from stitchkit.ship.predictors import MapPredictor
from stitchkit.training.dense.examples import class_colours, predicted_map
from stitchkit.training.dense.windows import Windows

_MILLIMETRES = 65_535  # the largest number in a PNG of 16 bits; 0 is an unknown depth


class _Photos(Dataset[tuple[int, torch.Tensor, int, str]]):
    """Image files as their number, normalised image `[3, H, W]`, `Change` and fault; an unreadable one is empty."""

    def __init__(self, paths: Sequence[str], predictor: MapPredictor):
        config = predictor.data_config
        self._paths = paths
        self.decoding = Decoding.of(config)
        self._transform = evaluation_transform(predictor.dense.task, mean=config["mean"], std=config["std"])

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> tuple[int, torch.Tensor, int, str]:
        path = self._paths[index]
        try:
            image, change = read_upright(path, path, self.decoding)
            return index, self._transform(image, np.zeros(image.size[::-1]))[0], change, ""
        except InputError as error:
            return index, torch.empty(0), 0, str(error)


def places_of(folder: str | Path, paths: Sequence[str]) -> list[Path]:
    """Where the maps of images go, relative to their folder: as the images lie in theirs, ending with `.png`.

    Raises:
        InputError: If two images would have one map.
    """
    found: dict[Path, str] = {}
    for path in paths:
        name = os.path.relpath(path, folder)
        place = Path(name).with_suffix(".png")
        if place in found:
            raise InputError(f"'{found[place]}' and '{name}' would both have the map '{place}'; rename one of them")
        found[place] = name
    return [*found]


@torch.inference_mode()
def predict_maps(
    predictor: MapPredictor, folder: str | Path, paths: Sequence[str], output: Path, *, device: torch.device,
    batch_size: int = 32, workers: int = 0,
) -> int:  # fmt: skip
    """Write the map of each image in a folder, at the image's size, into a new folder; unreadable images have none.

    Classes are the values of a palette, as masks have them; depths are millimetres in 16 bits.

    Raises:
        InputError: If two images would have one map, or an output is not finite; there is no folder then.
    """
    places, network = places_of(folder, paths), predictor.network.to(device).eval()
    _, height, width = predictor.data_config["input_size"]
    windows = Windows.of_task(predictor.dense, (height, width))
    photos, changes = _Photos(paths, predictor), list[int]()
    loader = DataLoader(photos, batch_size=None, num_workers=min(workers, usable_cores()))
    outlive_signals(loader)
    unreadable: dict[str, str] = {}
    with explained("lower --workers"), filling(output) as unfinished:
        for number, image, change, fault in progress(loader, World(0, 1, device), "predict", unit="images"):
            changes.append(change)
            if fault:
                unreadable[os.path.relpath(paths[number], folder)] = fault
                continue
            cut = windows.cut([image.to(device)])
            outputs = torch.cat([network(part) for part in cut.portions(batch_size)])
            (found,) = cut.merged(outputs, [image[0]])
            if not found.isfinite().all():  # the class of NaN would be 0
                raise InputError(f"the outputs for '{paths[number]}' are not finite; the weights may have diverged")
            place = unfinished / places[number]
            place.parent.mkdir(parents=True, exist_ok=True)
            _picture(found, predictor.dense.task).save(place)
    report_unreadable(unreadable, len(paths))
    report_changes(changes, photos.decoding)
    return len(unreadable)


def _picture(output: torch.Tensor, task: str) -> Image.Image:
    found = predicted_map(output, task)
    if task == "depth":
        return Image.fromarray((1000 * found).round().clip(1, _MILLIMETRES).astype(np.uint16))
    image = Image.fromarray(found.astype(np.uint8))
    image.putpalette((255 * class_colours(len(output))).round().astype(np.uint8).tobytes())
    return image

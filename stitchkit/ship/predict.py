"""Classes by one stitch for the images of a folder, as a table."""

from __future__ import annotations

import argparse
import csv
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import torch
from timm.data import ImageNetInfo

from stitchkit.data.folders import image_files
from stitchkit.data.loader_processes import explained
from stitchkit.display import counted
from stitchkit.distributed import World, choose_device
from stitchkit.errors import InputError
from stitchkit.files import replacing
from stitchkit.progress import progress
from stitchkit.ship.commands import PredictSettings
from stitchkit.ship.predict_maps import predict_maps
from stitchkit.ship.predictors import Files, Predictor, Transform, predictor_of, report_changes, report_unreadable

_IMAGENET = 1000


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
    return [(names[index], share) for index, share in zip(best.indices.tolist(), best.values.tolist(), strict=True)]


@torch.inference_mode()
def predict(
    predictor: Predictor, folder: str | Path, paths: Sequence[str], output: Path, *, device: torch.device,
    top: int = 5, batch_size: int = 32, workers: int = 0,
) -> int:  # fmt: skip
    """Write the likeliest classes of a folder's images as CSV, and return the number of unreadable images."""
    network = predictor.network.to(device).eval()
    count = network(torch.zeros(1, *predictor.data_config["input_size"], device=device)).shape[1]
    names, ranks = described_classes(predictor.classes, count), range(2, min(top, count) + 1)
    head = ["path", "class", "probability", *(f"{key}_{rank}" for rank in ranks for key in ("class", "probability"))]
    transform, blank = Transform(predictor.data_config), torch.zeros(*predictor.data_config["input_size"])
    loader = Files(paths, transform.read, blank).loader(batch_size, workers)
    unreadable: dict[str, str] = {}
    changes: list[int] = []
    batches = progress(loader, World(0, 1, device), "predict", unit="batches")
    with (
        explained("lower --workers"),
        replacing(output) as draft,
        draft.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(head)
        for numbers, images, changed, faults in batches:
            changes += changed.tolist()
            for number, logits, fault in zip(numbers.tolist(), network(images.to(device)), faults, strict=True):
                path = os.path.relpath(paths[number], folder)
                cells = [cell for name, share in likeliest(logits, names, top) for cell in (name, f"{share:.6f}")]
                writer.writerow([path, *([""] * len(cells) if fault else cells)])
                if fault:
                    unreadable[path] = fault
    report_unreadable(unreadable, len(paths))
    report_changes(changes, transform.decoding)
    return len(unreadable)


def run(flags: argparse.Namespace, settings: PredictSettings, output: Path) -> None:
    """Run `stitchkit predict`."""
    (paths, notes), device = image_files(flags.folder), choose_device(flags.device)
    predictor = predictor_of(flags)
    if isinstance(predictor, Predictor):
        if not output.suffix:
            raise InputError(f"'{output}' must be a CSV file; give a name that ends with .csv")
        unreadable = predict(predictor, flags.folder, paths, output, device=device, **asdict(settings))
    else:
        if output.suffix:
            raise InputError(f"the network gives a map of each image; give -o a folder for them in place of '{output}'")
        if settings.top != PredictSettings.top:
            raise InputError("--top does not apply to networks that predict maps; omit it")
        loading = {"batch_size": settings.batch_size, "workers": settings.workers}
        unreadable = predict_maps(predictor, flags.folder, paths, output, device=device, **loading)
    print(f"{output} has predictions for {len(paths) - unreadable} of {counted(len(paths), 'image')}{notes}")

"""Classes by one stitch for the images of a folder, as a table."""

from __future__ import annotations

import csv
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from timm.data import ImageNetInfo
from torch.utils.data import DataLoader, Dataset

from stitchkit.data.decoding import Change, Decoding
from stitchkit.data.loader_processes import explained, outlive_signals, usable_cores
from stitchkit.display import counted, listed
from stitchkit.distributed import World
from stitchkit.errors import InputError, one_line
from stitchkit.files import replacing
from stitchkit.progress import progress
from stitchkit.ship.predictors import Predictor, Transform

_logger = logging.getLogger(__name__)

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


class Files(Dataset[tuple[int, torch.Tensor, int, str]]):
    """Image files as their number, input, `Change` and fault; the input of an unreadable one is `blank`."""

    def __init__(self, paths: Sequence[str], read: Callable[[str], tuple[torch.Tensor, Change]], blank: torch.Tensor):
        self._paths, self._read, self._blank = paths, read, blank

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> tuple[int, torch.Tensor, int, str]:
        path = self._paths[index]
        try:
            return index, *self._read(path), ""
        except Exception as error:  # decoders raise many types
            # The cause alone, without the path, which the message names.
            cause = str(error) if isinstance(error, InputError) else one_line(error.__cause__ or error)
            return index, self._blank, 0, cause.removesuffix(repr(path)).rstrip(" :")


def open_loader(files: Files, batch_size: int | None, workers: int) -> DataLoader[tuple[int, torch.Tensor, int, str]]:
    """The loader of files, in batches or, without a size, one by one."""
    loader = DataLoader(files, batch_size, num_workers=min(workers, usable_cores()))  # torch warns of more
    outlive_signals(loader)
    return loader


def report_unreadable(faults: Mapping[str, str], images: int) -> None:
    """Log which of so many images cannot be read, and why the first."""
    if faults:
        message = "%d of %s cannot be read: %s; the first: %s"
        shown, first = listed([*faults]), next(iter(faults.values()))
        _logger.warning(message, len(faults), counted(images, "image"), shown, first)


def report_changes(changes: Sequence[int], decoding: Decoding) -> None:
    """Log how many of some images were changed by decoding, and how."""
    if words := decoding.described({kind: sum(bool(change & kind) for change in changes) for kind in Change}):
        _logger.info("of %s: %s", counted(len(changes), "image"), words)


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
    transform = Transform(predictor.data_config)
    loader = open_loader(
        Files(paths, transform.read, torch.zeros(*predictor.data_config["input_size"])), batch_size, workers
    )
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

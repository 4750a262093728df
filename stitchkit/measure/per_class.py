"""`per_class.csv`: the top-1 accuracy of every class, a line for each class and a column for each network."""

from __future__ import annotations

import csv
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from stitchkit.errors import InputError
from stitchkit.files import read_table, replacing
from stitchkit.measure.per_image import PerImage

PER_CLASS = "per_class.csv"


def write_per_class(
    folder: Path, classes: Sequence[str], images: PerImage, networks: Mapping[str, int], *, keep: Collection[str] = ()
) -> None:
    """Write the accuracies of networks, by column their `cfg_id`, in percent; a class without images has none.

    The columns `keep` of an earlier evaluation of the same classes and images stay.
    """
    path, (some, *_) = folder / PER_CLASS, networks.values()
    columns: dict[str, Sequence[object]] = {"class": classes, "images": images.classes(some, len(classes))[1]}
    before = _read(path)
    if all(before.get(name) == [str(value) for value in column] for name, column in columns.items()):
        columns |= {name: before[name] for name in keep if name in before}
    for name, cfg_id in networks.items():
        counts = zip(*images.classes(cfg_id, len(classes)), strict=True)
        columns[name] = [f"{100 * hits / count:.4f}" if count else "" for hits, count in counts]
    with replacing(path) as draft, draft.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=False))


def _read(path: Path) -> dict[str, list[str]]:
    try:
        return read_table(path)
    except InputError:
        return {}

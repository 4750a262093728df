"""`per_class.csv`: the top-1 accuracy of every class, a line for each class and a column for each network."""

from __future__ import annotations

import csv
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from stitchkit.errors import InputError
from stitchkit.files import read_table, replacing
from stitchkit.measure.evaluate import Score

PER_CLASS = "per_class.csv"


def write_per_class(
    folder: Path, classes: Sequence[str], scores: Mapping[str, Score], *, keep: Collection[str] = ()
) -> None:
    """Write the accuracies of networks in percent, by column; a class without images has none.

    The columns `keep` of an earlier evaluation of the same classes and images stay.
    """
    path, some = folder / PER_CLASS, next(iter(scores.values()))
    # A network may have more logits than the data have classes.
    columns: dict[str, Sequence[object]] = {"class": classes, "images": some.class_images[: len(classes)]}
    before = _read(path)
    if all(before.get(name) == [str(value) for value in column] for name, column in columns.items()):
        columns |= {name: before[name] for name in keep if name in before}
    for name, score in scores.items():
        columns[name] = ["" if share is None else f"{share:.4f}" for share in score.class_acc1]
    with replacing(path) as draft, draft.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=False))


def _read(path: Path) -> dict[str, list[str]]:
    try:
        return read_table(path)
    except InputError:
        return {}

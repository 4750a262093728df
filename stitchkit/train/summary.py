"""What a run writes for people: `summary.csv`, one line an epoch as timm has it, and `fit.csv`, one line a joint."""

from __future__ import annotations

import csv
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path

from timm.utils import update_summary

from stitchkit.measure.evaluate import Score
from stitchkit.routes import Joint, StitchSpace

_NAME = "summary.csv"


def write_summary(
    folder: Path, epoch: int, *, loss: float, rate: float, scores: Mapping[str, Score], labels: Sequence[str]
) -> None:
    """Append an epoch; one without validation leaves its columns empty.

    Args:
        folder: Of the run.
        epoch: Number of the epoch.
        loss: Mean training loss.
        rate: Learning rate after the epoch.
        scores: What the validation found, by label.
        labels: All labels that validations of this run have.
    """
    path = folder / _NAME
    figures = OrderedDict((f"{label}_acc1", scores[label].acc1 if label in scores else "") for label in labels)
    update_summary(epoch, OrderedDict(loss=loss), figures, str(path), lr=rate, write_header=not path.exists())


def cut_summary(folder: Path, epoch: int) -> None:
    """Drop the lines of `epoch` and later, which a resumed run writes anew."""
    path = folder / _NAME
    if not path.exists():
        return
    with path.open(newline="") as file:
        head, *rows = list(csv.reader(file)) or [[]]
    if not head:  # killed before the first line was written; without a file the next epoch writes the head
        path.unlink()
        return
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([head, *(row for row in rows if int(row[0]) < epoch)])


def write_fit(folder: Path, space: StitchSpace, residuals: Mapping[Joint, float]) -> None:
    """Write how well each stitching layer does at each of its joints after the closed-form fit.

    Args:
        folder: Of the run.
        space: The stitches, with the layer of each joint.
        residuals: The part of the target's energy that is left over.
    """
    with (folder / "fit.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["layer", "joint", "residual"])
        for joint, residual in residuals.items():
            writer.writerow([".".join(map(str, space.layers[joint])), joint, f"{residual:.6f}"])

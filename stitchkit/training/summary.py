"""Tables of a run for its user: `summary.csv`, one line per epoch, as in timm; `losses.csv`, one line for each stitch
drawn in an epoch; `fit.csv`, one line per joint.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from stitchkit.files import drop_unfinished, opened, read_table, refuse_link, replacing
from stitchkit.routes import Joint, StitchSpace

_NAME = "summary.csv"
_LOSSES = "losses.csv"


def write_summary(folder: Path, epoch: int, *, loss: float, rate: float, columns: Mapping[str, float | str]) -> None:
    """Append an epoch: its mean training loss, the columns of its validation, and the rate of its last step."""
    row = {"epoch": epoch, "train_loss": loss, **columns, "lr": rate}
    _append(folder / _NAME, list(row), [row.values()])


def read_summary(folder: Path) -> list[dict[str, float | None]]:
    """The rows of `summary.csv` by column; None for an empty cell."""
    columns = read_table(folder / _NAME, grows=True)
    return [dict(zip(columns, map(_number, cells), strict=True)) for cells in zip(*columns.values(), strict=True)]


def _number(text: str) -> float | None:
    for kind in (int, float):  # the number of an epoch is whole
        with suppress(ValueError):
            return kind(text)
    return None


def write_losses(folder: Path, epoch: int, space: StitchSpace, losses: Mapping[int, tuple[float, int]]) -> None:
    """Append the mean training loss of each `cfg_id` in an epoch and its steps, which show the routes that learn."""
    rows = ([epoch, cfg_id, space[cfg_id].name, *loss_and_steps] for cfg_id, loss_and_steps in losses.items())
    _append(folder / _LOSSES, ["epoch", "cfg_id", "stitch", "loss", "steps"], rows)


def _append(path: Path, head: Sequence[str], rows: Iterable[Iterable[object]]) -> None:
    """Add lines to a table; timm's own `update_summary` would follow a link."""
    with opened(path, "a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if not file.tell():
            writer.writerow(head)
        writer.writerows(rows)


def cut_summaries(folder: Path, epoch: int) -> None:
    """Drop the lines of `epoch` and later, which a resumed run writes again."""
    for path in (folder / _NAME, folder / _LOSSES):
        refuse_link(path)
        if not path.exists():
            continue
        drop_unfinished(path)
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            head, *rows = list(csv.reader(file)) or [[]]
        if head:  # rows that do not begin with a number are not epochs
            _write(path, [head, *(row for row in rows if row and row[0].isdecimal() and int(row[0]) < epoch)])
        else:  # the run was killed before its first line; the next epoch writes the head into a new file
            path.unlink()


def write_fit(folder: Path, space: StitchSpace, residuals: Mapping[Joint, float]) -> None:
    """Write the share of the target's energy that remains at each joint after the fit of its stitching layer."""
    lines = ([".".join(map(str, space.layers[joint])), joint, f"{left:.6f}"] for joint, left in residuals.items())
    _write(folder / "fit.csv", [["layer", "joint", "residual"], *lines])


def _write(path: Path, rows: Iterable[Iterable[object]]) -> None:
    with replacing(path) as draft, draft.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)

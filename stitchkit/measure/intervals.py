"""Confidence in the figures of a ledger: 95 % intervals of figures and of their differences, and P(on the front).

They answer one question: what if other images of the same kind had been drawn? Another training run, or other kinds of
images, may change more. Accuracies have formulas; other figures of dense tasks have a bootstrap.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stitchkit.display import counted
from stitchkit.errors import InputError
from stitchkit.measure.comparison import Compared
from stitchkit.measure.formulas import Floats, accuracy_interval
from stitchkit.measure.ledger import WITH_INTERVALS, Row
from stitchkit.measure.metric import ACCURACY, AGREE, compared
from stitchkit.measure.per_image import REGENERATE, PerImage

_KEYS = (*(f"{figure}_{end}" for figure in WITH_INTERVALS for end in ("low", "high")), "p_front", "tied_with")


def compared_beside(ledger: str | Path, metric: str) -> Compared | None:
    """What tells the networks of a ledger apart by a metric, from the file beside it; None if nothing does."""
    images = PerImage.beside(ledger, metric)
    return None if images is None else images.compared()


def add_intervals(rows: Sequence[Row], known: Compared | None, cost: str = "flops") -> None:
    """Replace the intervals in rows.

    Rows with hits or a number of images get `acc1_low` and `acc1_high`; rows with sums get those of the dense task's
    figure. Rows judged on every image that any row has seen also get `p_front` and `tied_with` (`cfg_id`s), by this
    cost.
    """
    ends = {} if known is None else known.intervals()
    for row in rows:
        for key in _KEYS:
            row.pop(key, None)
        _add_interval(row, ACCURACY if known is None else known.metric, ends.get(row["cfg_id"]))
    if known is None:
        return
    some = [row for row in rows if row.keys() >= {known.metric, cost} and row["cfg_id"] in ends]
    some = compared(some, AGREE) if known.metric == AGREE else some  # others have other right answers
    if some:
        check_by_image(some, known)
        _add_comparisons(some, known.of([row["cfg_id"] for row in some]), cost)


def _add_interval(row: Row, metric: str, ends: tuple[float, float] | None) -> None:
    """Put the interval of a figure into its row; without one, an accuracy on a known number of images still has it."""
    figure, images = row.get(metric, -1), row.get("images", 0)
    if not ends and metric == ACCURACY and images >= 1 and 0 <= figure <= 100:  # a ledger may hold anything
        ends = accuracy_interval(figure / 100 * images, images)
    if ends and metric in row:
        row |= {f"{metric}_{end}": round(value, 4) for end, value in zip(("low", "high"), ends, strict=True)}


def check_by_image(rows: Sequence[Row], known: Compared) -> None:
    """Refuse hits or sums that contradict the figures of the rows."""
    known = known.of([row["cfg_id"] for row in rows])
    metric = known.metric
    for index, row in enumerate(rows):
        if metric in row and (contradiction := known.contradiction(index, row[metric])):
            raise InputError(
                f"the {known.kind} beside the ledger belong to another evaluation: cfg_id {row['cfg_id']} has {metric} "
                f"{row[metric]:.2f} in its row, and {contradiction} by the .{known.kind} file; {REGENERATE}"
            )


def _add_comparisons(rows: Sequence[Row], known: Compared, cost: str) -> None:
    counts = known.seen.any(axis=0)
    whole = [rows[index] for index in np.flatnonzero(known.seen[:, counts].all(axis=1)).tolist()]
    if not whole:
        return
    known, costs = known.of([row["cfg_id"] for row in whole]), [row[cost] for row in whole]
    ties = _tied(*known.paired_intervals(), costs)
    for row, share, tied in zip(whole, known.shares_on_front(costs), ties, strict=True):
        row |= {"p_front": share, "tied_with": [known.cfg_ids[index] for index in tied]}


def _tied(low: Floats, high: Floats, costs: Sequence[float]) -> list[list[int]]:
    """For each network the places of statistically tied networks of the same or a lower cost, the cheapest first."""
    cost = np.asarray(costs, float)
    tied = (low <= 0) & (high >= 0) & (cost[None, :] <= cost[:, None])
    np.fill_diagonal(tied, False)
    cheap_first = cost.argsort(kind="stable")
    return [cheap_first[row[cheap_first]].tolist() for row in tied]


def told_apart_note(front: Sequence[Row], known: Compared | None, metric: str = ACCURACY) -> str:
    """The points of a front, from cheap to costly, that differ significantly, or why that is unknown."""
    if known is None and metric != ACCURACY:
        return "no intervals without the sums of each image, which --eval writes beside a new ledger"
    if known is None:
        if any("acc1_low" in row for row in front):
            return "no ties and no P(front) without hits, which --eval writes beside a new ledger"
        return "no intervals: the ledger has no hits, and does not say on how many images it was measured"
    kind, known = known.kind, known.of([row["cfg_id"] for row in front if known.has([row["cfg_id"]])])
    points, told = len(known.cfg_ids), [str(known.cfg_ids[index]) for index in _apart(known.paired_intervals()[0])]
    if points < 2:
        return f"the front has {counted(points, 'point')} with {kind}, so that there is nothing to tell apart"
    without = len(front) - points
    others = (
        f"; {counted(without, 'point')} of the front {'has' if without == 1 else 'have'} no {kind}" if without else ""
    )
    if len(told) == 1:
        return f"no point of the front is told apart from the cheapest by a paired 95 % interval{others}"
    count, which = f"{len(told)} of {points} points", ", ".join(told)
    return f"{count} of the front are told apart by a paired 95 % interval: {which}{others}"


def _apart(low: Floats) -> list[int]:
    """The places of the points that are surely better than the last one before them that counts; the first counts."""
    apart: list[int] = []
    for index in range(len(low)):
        if not apart or low[index, apart[-1]] > 0:
            apart.append(index)
    return apart

"""How sure the figures of a ledger are: 95 % intervals of figures and of their differences, and P(on the front).

All of it answers one question: what if other images of the same kind had been drawn? Another training run, or images of
another kind, may change more. Accuracies have formulas; figures of dense tasks, which are no shares of images, have a
bootstrap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from stitchkit.display import counted
from stitchkit.errors import InputError
from stitchkit.measure.hits import Bits, Hits, hits_beside
from stitchkit.measure.image_sums import sums_beside
from stitchkit.measure.ledger import WITH_INTERVALS, Row
from stitchkit.measure.metric import ACCURACY
from stitchkit.measure.redrawn import Redrawn, draw_sets, redraw

Floats = npt.NDArray[np.float64]
ByImage: TypeAlias = Hits | Redrawn
"""What tells networks apart, image by image."""

_Z = 1.959963984540054
"""A normal variable lies within this many standard deviations in 95 % of cases."""
_ROUNDED = 0.005
"""Half of the last digit in which a figure is shown, in points."""
_KEYS = (*(f"{figure}_{end}" for figure in WITH_INTERVALS for end in ("low", "high")), "p_front", "tied_with")


def accuracy_interval(right: float, images: float) -> tuple[float, float]:
    """The 95 % interval of an accuracy, in percent.

    Args:
        right: The number of images, of all `images`, whose class a network finds.

    Source: Wilson, Probable inference, the law of succession, and statistical inference, JASA 22, 1927. It stays
        within 0 and 100 %, and holds with few images and accuracies near 100 %.
    """
    share, z2 = right / images, _Z**2 / images
    middle = (share + z2 / 2) / (1 + z2)
    half = sqrt(z2 * (share * (1 - share) + z2 / 4)) / (1 + z2)
    return 100 * max(middle - half, 0.0), 100 * min(middle + half, 1.0)


def paired_intervals(right: Bits, seen: Bits) -> tuple[Floats, Floats]:
    """The 95 % intervals of the differences of all pairs of networks, on the images that both have seen.

    Only the images that one of two networks has right tell them apart, so these intervals are much narrower than those
    of two accuracies suggest. One image is added on either side, as if each network had beaten the other once more.
    Without them, networks that differ on few images would seem to be surely different or surely equal. With them, the
    interval leaves 0 out wherever McNemar's exact test finds a difference, and in few other cases: on 199 images or
    more, only if more than 13 tell the networks apart and p < 0.066; on 91 or more, only if p < 0.066; on 20 or more,
    if p < 0.079. On fewer, p may be as high as 0.125 (4 to 0 of 4 images).

    Args:
        right, seen: As in `Hits`, `[networks, images]`.

    Returns:
        Lowest and highest differences, of the row's network minus the column's, in points, `[networks, networks]`.

    Source: Bonett and Price, Adjusted Wald confidence interval for a difference of binomial proportions based on paired
        data, Journal of Educational and Behavioral Statistics 37, 2012.
    """
    bits, asked = right.astype(np.float32), seen.astype(np.float32)  # sums of ones are exact up to 16 million images
    alone = (bits @ asked.T - bits @ bits.T).astype(float)  # images that the row's network has right, the column's not
    images = (asked @ asked.T).astype(float) + 2
    wins, losses = (alone + 1) / images, (alone.T + 1) / images
    difference = wins - losses
    half = _Z * np.sqrt((wins + losses - difference**2) / images)
    return 100 * np.maximum(difference - half, -1), 100 * np.minimum(difference + half, 1)


def _tied(low: Floats, high: Floats, costs: Sequence[float]) -> list[list[int]]:
    """For each network the places of those that cost at most as much and cannot be told from it, the cheapest first.

    The interval of their difference contains 0. One that costs less and is surely better is not tied: it wins.
    """
    cost = np.asarray(costs, float)
    tied = (low <= 0) & (high >= 0) & (cost[None, :] <= cost[:, None])
    np.fill_diagonal(tied, False)
    cheap_first = cost.argsort(kind="stable")
    return [cheap_first[row[cheap_first]].tolist() for row in tied]


def share_on_front(right: Bits, costs: Sequence[float], *, samples: int = 1000, seed: int = 0) -> list[float]:
    """P(on the front) of each network: the share of sets of images, drawn anew, in which it is on the Pareto front.

    A set has as many images as there are, drawn from these with replacement (a bootstrap). The front's rule is that of
    `pareto_front`.

    Args:
        right: Whether a network's answer is the label, `[networks, images]`; all networks have seen all images.
    """
    bits = right.T.astype(np.float32)  # sums of ones are exact up to 16 million images
    on_front = np.zeros(len(costs), int)
    for sets in draw_sets(len(bits), samples, seed):
        found = sets.astype(np.float32) @ bits
        on_front += _on_front(found.astype(float), np.asarray(costs, float)).sum(axis=0)
    shares: list[float] = (on_front / samples).tolist()
    return shares


def _on_front(values: Floats, costs: Floats) -> Bits:
    """Whether each network is on the front, in every set: better than all that cost less; of equals, the first.

    Args:
        values: How good a network is in a set, such as how many images it has right, `[sets, networks]`.
    """
    on_front = np.zeros(values.shape, bool)
    best, sets = np.full(len(values), -np.inf), np.arange(len(values))
    for cost in np.unique(costs):
        equals = np.flatnonzero(costs == cost)
        first = equals[values[:, equals].argmax(axis=1)]
        on_front[sets, first] = values[sets, first] > best
        best = np.maximum(best, values[sets, first])
    return on_front


def _apart(low: Floats) -> list[int]:
    """The places of the points that are surely better than the last one before them that counts; the first counts."""
    apart: list[int] = []
    for place in range(len(low)):
        if not apart or low[place, apart[-1]] > 0:
            apart.append(place)
    return apart


def by_image_beside(ledger: str | Path, metric: str) -> ByImage | None:
    """What tells the networks of a ledger apart by a metric, from the files beside it; None if nothing does."""
    if metric == ACCURACY:
        return hits_beside(ledger)
    sums = sums_beside(ledger) if metric in WITH_INTERVALS else None
    return redraw(sums) if sums is not None and sums.score.metric == metric else None


def differences(known: ByImage) -> tuple[Floats, Floats]:
    """The paired 95 % intervals of the differences of all pairs of networks, as `paired_intervals`."""
    return paired_intervals(known.right, known.seen) if isinstance(known, Hits) else known.paired_intervals()


def difference(known: ByImage, one: int, other: int) -> float:
    """The figure of the network at a place minus that of another, in points: accuracies on the images of both."""
    if isinstance(known, Redrawn):
        return float(known.figures[one] - known.figures[other])
    both = known.seen[one] & known.seen[other]
    return float(100 * (known.right[one][both].mean() - known.right[other][both].mean()))


def add_intervals(rows: Sequence[Row], known: ByImage | None, cost: str = "flops") -> None:
    """Put the intervals into rows; earlier ones are removed.

    Rows get `acc1_low` and `acc1_high` if they have hits or say on how many images they were measured, and those of the
    figure of a dense task if they have sums; those that have hits or sums on all images that any such row has seen also
    get `p_front` and `tied_with` (`cfg_id`s), by this cost, among each other. Rows that an evaluation in two stages
    dropped after a part of the images get neither: that part may be easier than the whole, and they were put off the
    front by it.

    Raises:
        InputError: If the hits or sums are of another evaluation.
    """
    for row in rows:
        for key in _KEYS:
            row.pop(key, None)
    seen = {} if known is None else dict(zip(known.cfg_ids, known.seen.sum(axis=1).tolist(), strict=True))
    if isinstance(known, Redrawn):
        _add_redrawn(rows, known)
    else:
        _add_of_accuracies(rows, seen)
    if known is None:
        return
    some = [row for row in rows if row.keys() >= {known.metric, cost} and seen.get(row["cfg_id"])]
    if some:
        check_by_image(some, known)
        _add_comparisons(some, known.of([row["cfg_id"] for row in some]), cost)


def _add_of_accuracies(rows: Sequence[Row], seen: Mapping[int, int]) -> None:
    for row in rows:
        images = seen.get(row["cfg_id"]) or row.get("images", 0)
        if images >= 1 and 0 <= row.get(ACCURACY, -1) <= 100:  # a ledger may hold anything
            low, high = accuracy_interval(row[ACCURACY] / 100 * images, images)
            row |= {"acc1_low": round(low, 4), "acc1_high": round(high, 4)}


def _add_redrawn(rows: Sequence[Row], known: Redrawn) -> None:
    ends = dict(zip(known.cfg_ids, zip(*known.intervals(), strict=True), strict=True))
    for row in rows:
        if known.metric in row and row["cfg_id"] in ends:
            low, high = ends[row["cfg_id"]]
            row |= {f"{known.metric}_low": round(float(low), 4), f"{known.metric}_high": round(float(high), 4)}


def check_by_image(rows: Sequence[Row], known: ByImage) -> None:
    """Refuse hits or sums by which rows would have other figures."""
    known = known.of([row["cfg_id"] for row in rows])
    metric = known.metric
    for place, row in enumerate(rows):
        if isinstance(known, Hits):
            right, seen = int(known.right[place].sum()), int(known.seen[place].sum())
            is_other = metric in row and abs(right - row[metric] / 100 * seen) > 0.5  # half an image
            said = f"{right:,} of {seen:,} images right"
        else:
            is_other = metric in row and abs(known.figures[place] - row[metric]) > _ROUNDED
            said = f"{known.figures[place]:.2f}"
        if is_other:
            raise InputError(
                f"the {known.kind} beside the ledger are of another evaluation: cfg_id {row['cfg_id']} has {metric} "
                f"{row[metric]:.2f} in its row, and {said} by its {known.kind}; remove the .{known.kind} file to leave "
                "intervals out; to have them again, remove the ledger too and repeat --eval"
            )


def _add_comparisons(rows: Sequence[Row], known: ByImage, cost: str) -> None:
    """Compare the rows that have seen all images that any of them has; what is known is in the order of the rows."""
    counts = known.seen.any(axis=0)
    whole = [rows[place] for place in np.flatnonzero(known.seen[:, counts].all(axis=1)).tolist()]
    known, costs = known.of([row["cfg_id"] for row in whole]), [row[cost] for row in whole]
    if isinstance(known, Hits):
        shares = share_on_front(known.right[:, counts], costs)
    else:
        shares = _on_front(known.values, np.asarray(costs, float)).mean(axis=0).tolist()
    for row, share, tied in zip(whole, shares, _tied(*differences(known), costs), strict=True):
        row |= {"p_front": share, "tied_with": [known.cfg_ids[place] for place in tied]}


def told_apart_note(front: Sequence[Row], known: ByImage | None, metric: str = ACCURACY) -> str:
    """How many points of a front, from cheap to costly, are told apart, or why nobody knows."""
    if known is None and metric != ACCURACY:
        return "no intervals without the sums of each image, which --eval writes beside a new ledger"
    if known is None:
        if any("acc1_low" in row for row in front):
            return "no ties and no P(front) without hits, which --eval writes beside a new ledger"
        return "no intervals: the ledger has no hits, and does not say on how many images it was measured"
    kind, known = known.kind, known.of([row["cfg_id"] for row in front if known.has([row["cfg_id"]])])
    told, points = len(_apart(differences(known)[0])), len(known.cfg_ids)
    if points < 2:
        return f"the front has {counted(points, 'point')} with {kind}, so that there is nothing to tell apart"
    without = f"; {len(front) - points} of the front have no {kind}" if points < len(front) else ""
    return f"{told} of {counted(points, 'point')} of the front are told apart by a paired 95 % interval{without}"

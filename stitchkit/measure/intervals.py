"""How sure the figures of a ledger are: 95 % intervals of accuracies and of their differences, and P(on the front).

All of it answers one question: what if other images of the same kind had been drawn? Another training run, or images of
another kind, may change more.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import numpy as np
import numpy.typing as npt

from stitchkit.display import counted
from stitchkit.errors import InputError
from stitchkit.measure.hits import Bits, Hits
from stitchkit.measure.ledger import Row

Floats = npt.NDArray[np.float64]

_Z = 1.959963984540054
"""A normal variable lies within this many standard deviations in 95 % of cases."""
_SAMPLES_AT_ONCE = 50
"""At 50,000 images, 20 MB of counts."""
_KEYS = ("acc1_low", "acc1_high", "p_front", "tied_with")


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
    Without them, networks that differ on few images would seem to be surely different or surely equal; with them, the
    interval leaves 0 out where McNemar's exact test does (always, if up to 13 images tell two networks apart).

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


def tied_with(right: Bits, seen: Bits, costs: Sequence[float]) -> list[list[int]]:
    """For each network the places of those that cost at most as much and cannot be told from it, the cheapest first.

    The interval of their difference contains 0. One that costs less and is surely better is not tied: it wins.
    """
    low, high = paired_intervals(right, seen)
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
    images = len(bits)
    generator, on_front = np.random.default_rng(seed), np.zeros(len(costs), int)
    for start in range(0, samples, _SAMPLES_AT_ONCE):
        draws = [generator.integers(images, size=images) for _ in range(min(_SAMPLES_AT_ONCE, samples - start))]
        weights = np.stack([np.bincount(draw, minlength=images) for draw in draws]).astype(np.float32)
        on_front += _on_front((weights @ bits).astype(float), np.asarray(costs, float)).sum(axis=0)
    shares: list[float] = (on_front / samples).tolist()
    return shares


def _on_front(right: Floats, costs: Floats) -> Bits:
    """Whether each network is on the front, in every set: more accurate than all that cost less; of equals, the first.

    Args:
        right: How many images of a set a network has right, `[sets, networks]`.
    """
    on_front = np.zeros(right.shape, bool)
    best, sets = np.full(len(right), -np.inf), np.arange(len(right))
    for cost in np.unique(costs):
        equals = np.flatnonzero(costs == cost)
        first = equals[right[:, equals].argmax(axis=1)]
        on_front[sets, first] = right[sets, first] > best
        best = np.maximum(best, right[sets, first])
    return on_front


def told_apart(right: Bits, seen: Bits) -> list[int]:
    """The places of the networks that are surely better than the last one before them that counts; the first counts.

    Args:
        right, seen: As in `Hits`, of the networks on a front, from cheap to costly.
    """
    low, _ = paired_intervals(right, seen)
    apart: list[int] = []
    for place in range(len(right)):
        if not apart or low[place, apart[-1]] > 0:
            apart.append(place)
    return apart


def add_intervals(rows: Sequence[Row], hits: Hits | None, cost: str = "flops") -> None:
    """Put the intervals into rows; earlier ones are removed.

    Rows get `acc1_low` and `acc1_high` if they have hits or say on how many images they were measured; those that have
    hits on all images that any such row has seen also get `p_front` and `tied_with` (`cfg_id`s), by this cost, among
    each other. Rows that an evaluation in two stages dropped after a part of the images get neither: that part may be
    easier than the whole, and they were put off the front by it.

    Raises:
        InputError: If the hits are of another evaluation.
    """
    seen: dict[int, int] = {} if hits is None else dict(zip(hits.cfg_ids, hits.seen.sum(axis=1).tolist(), strict=True))
    for row in rows:
        for key in _KEYS:
            row.pop(key, None)
        images = seen.get(row["cfg_id"]) or row.get("images", 0)
        if images >= 1 and 0 <= row.get("acc1", -1) <= 100:  # a ledger may hold anything
            low, high = accuracy_interval(row["acc1"] / 100 * images, images)
            row |= {"acc1_low": round(low, 4), "acc1_high": round(high, 4)}
    some = [row for row in rows if row.keys() >= {"acc1", cost} and seen.get(row["cfg_id"])]
    if hits is not None and some:
        check_hits(some, hits)
        _add_comparisons(some, hits.of([row["cfg_id"] for row in some]), cost)


def check_hits(rows: Sequence[Row], hits: Hits) -> None:
    """Refuse hits by which rows would have other accuracies."""
    hits = hits.of([row["cfg_id"] for row in rows])
    for row, right, seen in zip(rows, hits.right.sum(axis=1), hits.seen.sum(axis=1), strict=True):
        if "acc1" in row and abs(right - row["acc1"] / 100 * seen) > 0.5:  # half an image
            raise InputError(
                f"the hits beside the ledger are of another evaluation: cfg_id {row['cfg_id']} has acc1 "
                f"{row['acc1']:.2f} in its row, and {right:,} of {seen:,} images right by its hits; remove the .hits "
                "file to leave intervals out; to have them again, remove the ledger too and repeat --eval"
            )


def _add_comparisons(rows: Sequence[Row], hits: Hits, cost: str) -> None:
    """Compare the rows that have seen all images that any of them has; the hits are in the order of the rows."""
    counts = hits.seen.any(axis=0)
    whole = [rows[place] for place in np.flatnonzero(hits.seen[:, counts].all(axis=1)).tolist()]
    hits, costs = hits.of([row["cfg_id"] for row in whole]), [row[cost] for row in whole]
    shares, ties = share_on_front(hits.right[:, counts], costs), tied_with(hits.right, hits.seen, costs)
    for row, share, tied in zip(whole, shares, ties, strict=True):
        row |= {"p_front": share, "tied_with": [hits.cfg_ids[place] for place in tied]}


def told_apart_note(front: Sequence[Row], hits: Hits | None) -> str:
    """How many points of a front, from cheap to costly, are told apart, or why nobody knows."""
    if hits is None:
        if any("acc1_low" in row for row in front):
            return "no ties and no P(front) without hits, which --eval writes beside a new ledger"
        return "no intervals: the ledger has no hits, and does not say on how many images it was measured"
    known = hits.of([row["cfg_id"] for row in front if hits.has([row["cfg_id"]])])
    told, points = len(told_apart(known.right, known.seen)), len(known.cfg_ids)
    if points < 2:
        return f"the front has {counted(points, 'point')} with hits, so that there is nothing to tell apart"
    without = f"; {len(front) - points} of the front have no hits" if points < len(front) else ""
    return f"{told} of {counted(points, 'point')} of the front are told apart by a paired 95 % interval{without}"

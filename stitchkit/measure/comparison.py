"""How networks compare on the same images: accuracies by formulas, figures of sums by a bootstrap."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, TypeAlias

import numpy as np

from stitchkit.measure.formulas import NORMAL_95, Bits, Floats, accuracy_interval, draw_sets, on_front, share_on_front
from stitchkit.measure.scores import DenseScore

_ENDS = (2.5, 97.5)  # percentiles, between which are 95 % of all sets
_ROUNDED = 0.005  # half of the last digit shown of a figure, in points


class OfNetworks:
    """What is known of some networks, by their numbers."""

    cfg_ids: tuple[int, ...]

    @cached_property
    def _places(self) -> dict[int, int]:
        return {cfg_id: index for index, cfg_id in enumerate(self.cfg_ids)}

    def places(self, cfg_ids: Sequence[int]) -> list[int]:
        """Where some of the networks are."""
        return [self._places[cfg_id] for cfg_id in cfg_ids]

    def has(self, cfg_ids: Sequence[int]) -> bool:
        """Whether all of some networks are here."""
        return self._places.keys() >= {*cfg_ids}


@dataclass(frozen=True, eq=False)
class Paired(OfNetworks):
    """Whether networks were right about images that they have `seen`, `[networks, images]`."""

    cfg_ids: tuple[int, ...]
    metric: str
    right: Bits
    seen: Bits
    kind: ClassVar[str] = "hits"

    def of(self, cfg_ids: Sequence[int]) -> Paired:
        """Some of the networks, in this order."""
        places = self.places(cfg_ids)
        return replace(self, cfg_ids=tuple(cfg_ids), right=self.right[places], seen=self.seen[places])

    def intervals(self) -> dict[int, tuple[float, float]]:
        """The 95 % interval of the accuracy of each network that has seen an image, in percent."""
        counts = zip(self.cfg_ids, self.right.sum(axis=1).tolist(), self.seen.sum(axis=1).tolist(), strict=True)
        return {cfg_id: accuracy_interval(right, seen) for cfg_id, right, seen in counts if seen}

    def paired_intervals(self) -> tuple[Floats, Floats]:
        """The 95 % intervals of the differences of all pairs of networks, on the images that both have seen.

        They are much narrower than two accuracies suggest, because only images that one of the two gets right count.
        One image is added on either side, since networks that differ on few images would otherwise seem surely
        different or surely equal. The interval excludes 0 wherever McNemar's exact test finds a difference, and in few
        other cases: with 199 images or more, only if more than 13 differ and p < 0.066; with 91 or more, if p < 0.066;
        with 20 or more, if p < 0.079. With fewer, p may be 0.125 (4 to 0 of 4 images).

        Returns:
            Lowest and highest differences, of the row's network minus the column's, in points, `[networks, networks]`.

        Source: Bonett and Price, Adjusted Wald confidence interval for a difference of binomial proportions based on
            paired data, Journal of Educational and Behavioral Statistics 37, 2012.
        """
        right, seen = self.right.astype(np.float32), self.seen.astype(np.float32)  # exact up to 16 million images
        alone = (right @ seen.T - right @ right.T).astype(float)  # the row's network is right there, the column's not
        images = (seen @ seen.T).astype(float) + 2
        wins, losses = (alone + 1) / images, (alone.T + 1) / images
        difference = wins - losses
        half = NORMAL_95 * np.sqrt((wins + losses - difference**2) / images)
        return 100 * np.maximum(difference - half, -1), 100 * np.minimum(difference + half, 1)

    def difference(self, index: int, other_index: int) -> float:
        """The accuracy of the network at a place minus that of another, in points, on the images of both."""
        both = self.seen[index] & self.seen[other_index]
        return float(100 * (self.right[index][both].mean() - self.right[other_index][both].mean()))

    def shares_on_front(self, costs: Sequence[float]) -> list[float]:
        """P(on the front) of each network; all have seen all images that any has."""
        return share_on_front(self.right[:, self.seen.any(axis=0)], costs)

    def contradiction(self, index: int, figure: float) -> str:
        """What the hits say of the network at a place instead of an accuracy; empty if both say the same."""
        right, seen = int(self.right[index].sum()), int(self.seen[index].sum())
        return f"{right:,} of {seen:,} images right" if abs(right - figure / 100 * seen) > 0.5 else ""  # half an image


@dataclass(frozen=True, eq=False)
class Redrawn(OfNetworks):
    """The figures of networks on images `[networks]`, and their values in drawn sets of these `[sets, networks]`."""

    cfg_ids: tuple[int, ...]
    metric: str
    figures: Floats
    values: Floats
    seen: Bits
    kind: ClassVar[str] = "sums"

    def of(self, cfg_ids: Sequence[int]) -> Redrawn:
        """Some of the networks, in this order."""
        places = self.places(cfg_ids)
        return replace(
            self, cfg_ids=tuple(cfg_ids), figures=self.figures[places], values=self.values[:, places],
            seen=self.seen[places],
        )  # fmt: skip

    def intervals(self) -> dict[int, tuple[float, float]]:
        """The 95 % interval of the figure of each network that has seen an image, in percent."""
        low, high = np.percentile(self.values, _ENDS, axis=0).tolist()
        ends = dict(zip(self.cfg_ids, zip(low, high, strict=True), strict=True))
        return {cfg_id: ends[cfg_id] for cfg_id, seen in zip(self.cfg_ids, self.seen, strict=True) if seen.any()}

    def paired_intervals(self) -> tuple[Floats, Floats]:
        """The 95 % intervals of the differences of all pairs of networks, lowest and highest, `[networks, networks]`.

        A set that is hard for one is hard for both, so these are much narrower than the intervals of two figures.

        Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13 (percentile intervals).
        """
        ends = np.zeros((2, len(self.cfg_ids), len(self.cfg_ids)))
        for index, values in enumerate(self.values.T):
            ends[:, index] = np.percentile(values[:, None] - self.values, _ENDS, axis=0)
        low, high = ends
        return low, high

    def difference(self, index: int, other_index: int) -> float:
        """The figure of the network at a place minus that of another, in points."""
        return float(self.figures[index] - self.figures[other_index])

    def shares_on_front(self, costs: Sequence[float]) -> list[float]:
        """P(on the front) of each network, in the sets."""
        shares: list[float] = on_front(self.values, costs).mean(axis=0).tolist()
        return shares

    def contradiction(self, index: int, figure: float) -> str:
        """The figure of the network at a place, if it is another one than this; empty if it is the same."""
        expected = float(self.figures[index])
        return f"{expected:.2f}" if abs(expected - figure) > _ROUNDED else ""


Compared: TypeAlias = Paired | Redrawn
"""What tells networks apart, image by image; both answer to the same methods."""


def redraw(
    cfg_ids: Sequence[int], score: DenseScore, sums: Iterable[Floats], seen: Bits, truth: Floats,
    *, samples: int, seed: int,
) -> Redrawn:  # fmt: skip
    """The figures of networks in bootstrap sets of the images that any of them has `seen`, `[networks, images]`.

    Args:
        sums: Of each network on every image, `[images, score.own + score.truth]`.
        truth: Of each image, `[images, score.truth]`.
    """
    counting = seen.any(axis=0)
    # In float64: a sum of pixels has more digits than float32. For 2,000 images, 16 MB.
    sets = np.concatenate([*draw_sets(int(counting.sum()), samples, seed)]).astype(np.float64)
    seen, of_all = seen[:, counting], sets @ truth[counting]
    values = np.zeros((samples, len(cfg_ids)))
    figures = np.zeros(len(cfg_ids))
    for index, every in enumerate(sums):
        rows = every[counting]
        own, known = rows[:, : score.own], rows[:, score.own :]
        drawn = np.hstack([sets @ own, of_all if seen[index].all() else sets @ known])
        values[:, index] = score.figures(drawn)[score.metric]
        figures[index] = score.figures(rows.sum(axis=0))[score.metric]
    return Redrawn(tuple(cfg_ids), score.metric, figures, values, seen)

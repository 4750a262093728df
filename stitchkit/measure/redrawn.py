"""The figures of networks in sets of images that are drawn anew from those of an evaluation: a bootstrap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from stitchkit.measure.by_image import OfNetworks
from stitchkit.measure.formulas import Bits, Floats, draw_sets, on_front
from stitchkit.measure.image_sums import ImageSums

_ENDS = (2.5, 97.5)  # percentiles, between which are 95 % of all sets
_ROUNDED = 0.005  # half of the last digit shown of a figure, in points


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


def redraw(sums: ImageSums, *, samples: int = 1000, seed: int = 0) -> Redrawn:
    """The figures of networks in bootstrap sets of the images that any of them has judged."""
    seen, score = sums.seen, sums.score
    counting = seen.any(axis=0)
    # In float64: a sum of pixels has more digits than float32. For 2,000 images, 16 MB.
    sets = np.concatenate([*draw_sets(int(counting.sum()), samples, seed)]).astype(np.float64)
    seen, of_all = seen[:, counting], sets @ sums.truth[counting]
    values = np.zeros((samples, len(sums.cfg_ids)))
    figures = np.zeros(len(sums.cfg_ids))
    for index, cfg_id in enumerate(sums.cfg_ids):
        rows = sums.sums_of(cfg_id)[counting]
        own, truth = rows[:, : score.own], rows[:, score.own :]
        drawn = np.hstack([sets @ own, of_all if seen[index].all() else sets @ truth])
        values[:, index] = score.figures(drawn)[score.metric]
        figures[index] = score.figures(rows.sum(axis=0))[score.metric]
    return Redrawn(sums.cfg_ids, score.metric, figures, values, seen)

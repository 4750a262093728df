"""The figures of networks in sets of images that are drawn anew from those of an evaluation: a bootstrap."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from stitchkit.measure.dense_score import Floats
from stitchkit.measure.hits import Bits
from stitchkit.measure.image_sums import ImageSums

_SETS_AT_ONCE = 50
"""At 50,000 images, 20 MB of counts."""
_ENDS = (2.5, 97.5)
"""Percentiles, between which are 95 % of all sets."""


def draw_sets(images: int, samples: int, seed: int) -> Iterator[npt.NDArray[np.int64]]:
    """How often each image is in each of some sets, `[sets, images]`, until there are as many as `samples`.

    A set has as many images as there are, drawn from these with replacement.
    """
    generator = np.random.default_rng(seed)
    for start in range(0, samples, _SETS_AT_ONCE):
        draws = [generator.integers(images, size=images) for _ in range(min(_SETS_AT_ONCE, samples - start))]
        yield np.stack([np.bincount(draw, minlength=images) for draw in draws])


@dataclass(frozen=True, eq=False)
class Redrawn:
    """The figures of networks in the same sets of images.

    Args:
        cfg_ids: The networks.
        metric: The name of the figure.
        figures: That of each network on the images themselves, `[networks]`.
        values: Those in each set, `[sets, networks]`.
        seen: Which images that count a network has judged, `[networks, images]`.
    """

    cfg_ids: tuple[int, ...]
    metric: str
    figures: Floats
    values: Floats
    seen: Bits
    kind: ClassVar[str] = "sums"

    def has(self, cfg_ids: Sequence[int]) -> bool:
        """Whether all of some networks are here."""
        return {*self.cfg_ids} >= {*cfg_ids}

    def of(self, cfg_ids: Sequence[int]) -> Redrawn:
        """Some of the networks, in this order."""
        places = [self.cfg_ids.index(cfg_id) for cfg_id in cfg_ids]
        return replace(
            self, cfg_ids=tuple(cfg_ids), figures=self.figures[places], values=self.values[:, places],
            seen=self.seen[places],
        )  # fmt: skip

    def intervals(self) -> tuple[Floats, Floats]:
        """The 95 % interval of the figure of each network, `[networks]` for either end."""
        low, high = np.percentile(self.values, _ENDS, axis=0)
        return low, high

    def paired_intervals(self) -> tuple[Floats, Floats]:
        """The 95 % intervals of the differences of all pairs of networks, in the same sets.

        What is hard in a set is hard for both, so these are much narrower than those of two figures suggest.

        Returns:
            Lowest and highest differences, of the row's network minus the column's, `[networks, networks]`.

        Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13 (percentile intervals).
        """
        ends = np.zeros((2, len(self.cfg_ids), len(self.cfg_ids)))
        for place, values in enumerate(self.values.T):
            ends[:, place] = np.percentile(values[:, None] - self.values, _ENDS, axis=0)
        low, high = ends
        return low, high


def redraw(sums: ImageSums, *, samples: int = 1000, seed: int = 0) -> Redrawn:
    """The figures by which the networks are compared, in sets of the images that any of them has judged.

    Args:
        sums: Those of each image.
        samples: Number of sets.
        seed: Draws the sets.
    """
    seen, score = sums.seen, sums.score
    counting = seen.any(axis=0)
    # In float64: a sum of pixels has more digits than float32. For 2,000 images, 16 MB.
    sets = np.concatenate([*draw_sets(int(counting.sum()), samples, seed)]).astype(np.float64)
    seen, of_all = seen[:, counting], sets @ sums.truth[counting]
    values = np.zeros((samples, len(sums.cfg_ids)))
    figures = np.zeros(len(sums.cfg_ids))
    for place, cfg_id in enumerate(sums.cfg_ids):
        rows = sums.sums_of(cfg_id)[counting]
        own, truth = rows[:, : score.own], rows[:, score.own :]
        drawn = np.hstack([sets @ own, of_all if seen[place].all() else sets @ truth])
        values[:, place] = score.figures(drawn)[score.metric]
        figures[place] = score.figures(rows.sum(axis=0))[score.metric]
    return Redrawn(sums.cfg_ids, score.metric, figures, values, seen)

"""Formulas for networks that judge the same images: 95 % intervals, sets of images drawn anew, and P(on the front)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import sqrt

import numpy as np
import numpy.typing as npt

Bits = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

NORMAL_95 = 1.959963984540054
"""A normal variable lies within this many standard deviations in 95 % of cases."""
_SETS_AT_ONCE = 50  # at 50,000 images, 20 MB of counts


def accuracy_interval(right: float, images: float) -> tuple[float, float]:
    """The 95 % interval of an accuracy in percent, `right` of `images`.

    Source: Wilson, Probable inference, the law of succession, and statistical inference, JASA 22, 1927. It stays
        within 0 and 100 %, and holds with few images and accuracies near 100 %.
    """
    share, z2 = right / images, NORMAL_95**2 / images
    middle = (share + z2 / 2) / (1 + z2)
    half = sqrt(z2 * (share * (1 - share) + z2 / 4)) / (1 + z2)
    return 100 * max(middle - half, 0.0), 100 * min(middle + half, 1.0)


def draw_sets(images: int, samples: int, seed: int) -> Iterator[npt.NDArray[np.int64]]:
    """How often each image is in each bootstrap set, `[sets, images]`, in blocks until there are `samples` sets."""
    generator = np.random.default_rng(seed)
    for start in range(0, samples, _SETS_AT_ONCE):
        draws = [generator.integers(images, size=images) for _ in range(min(_SETS_AT_ONCE, samples - start))]
        yield np.stack([np.bincount(draw, minlength=images) for draw in draws])


def share_on_front(right: Bits, costs: Sequence[float], *, samples: int = 1000, seed: int = 0) -> list[float]:
    """P(on the front) of each network: the share of bootstrap sets of images that put it on the Pareto front.

    A set has as many images as there are, drawn from these with replacement (a bootstrap). The front's rule is that of
    `pareto_front`. All networks have seen all images, `[networks, images]`.
    """
    bits = right.T.astype(np.float32)  # sums of ones are exact up to 16 million images
    times = np.zeros(len(costs), int)
    for sets in draw_sets(len(bits), samples, seed):
        counts = sets.astype(np.float32) @ bits
        times += on_front(counts.astype(float), costs).sum(axis=0)
    shares: list[float] = (times / samples).tolist()
    return shares


def on_front(values: Floats, costs: Sequence[float]) -> Bits:
    """Whether networks with values `[sets, networks]` are on it: better than all cheaper, of equals the first."""
    is_on_front, best, sets = np.zeros(values.shape, bool), np.full(len(values), -np.inf), np.arange(len(values))
    for cost in np.unique(costs):
        equals = np.flatnonzero(np.equal(costs, cost))
        first = equals[values[:, equals].argmax(axis=1)]
        is_on_front[sets, first] = values[sets, first] > best
        best = np.maximum(best, values[sets, first])
    return is_on_front

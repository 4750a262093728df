"""The figures of the table: accuracy over budgets, what is left to the best of all rows, and paired intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from studies.evidence.record import Record, limits_of

Figures = npt.NDArray[np.float64]

_SAMPLES = 4000
_LEVEL = (2.5, 97.5)


def by_typeface(record: Record, cost: str = "flops") -> Figures:
    """Accuracy in percent of the network that meets each budget, on each typeface, `[budgets, typefaces]`."""
    accuracies: Figures = 100 * np.array(record.right(cost)) / record.test_images
    return accuracies


@dataclass(frozen=True)
class Findings:
    """A row of the table.

    Args:
        accuracy: Mean over budgets, images and seeds, in percent.
        interval: Of the accuracy, 95 %.
        seeds: The accuracy of each seed.
        difference: To the row of reference, in points, with its 95 % interval: `(difference, low, high)`.
        worst_case: The accuracy if a budget limits the cost of the costliest image.
        regret: Points under the best row of each budget: mean and worst over the budgets.
        worst_case_regret: The mean, if a budget limits the cost of the costliest image.
        networks: Mean number of networks offered, beside the given anchors.
        excess: How much more than a budget a network may cost on the test images, as a share; most over the budgets.
        spent: Multiply-adds of training, and in the same way `seconds` and `images`, passes of one; means over seeds.
    """

    accuracy: float
    interval: tuple[float, float]
    seeds: tuple[float, ...]
    difference: tuple[float, float, float]
    worst_case: float
    regret: tuple[float, float]
    worst_case_regret: float
    networks: float
    excess: float
    spent: float
    seconds: float
    images: float


def lines(records: Mapping[str, Sequence[Record]], reference: str) -> dict[str, Findings]:
    """The lines of rows, each with its records of the same seeds.

    The best row of a budget has luck in its accuracy, so that all regrets are a little too large, by the same amount.

    Intervals are of a bootstrap over typefaces, the same for all rows: images of one typeface are alike, so that they
    must be drawn together. They say how far other typefaces would change a figure; how far another training would,
    the seeds show.
    """
    # [seeds, budgets, typefaces], and their mean over seeds.
    each = {name: np.stack([*map(by_typeface, some)]) for name, some in records.items()}
    counts = np.array(next(iter(records.values()))[0].test_images)
    weights = counts / counts.sum()
    curves = {name: (found.mean(0) * weights).sum(-1) for name, found in each.items()}
    worst = {name: np.mean([by_typeface(one, "worst_flops") @ weights for one in records[name]], 0) for name in records}
    best, best_worst = (np.max([*found.values()], axis=0) for found in (curves, worst))
    drawn = _resampled(weights)
    means = {name: found.mean((0, 1)) for name, found in each.items()}  # [typefaces]
    sampled = {name: drawn @ mean for name, mean in means.items()}
    found = {}
    for name in records:
        accuracy = float(means[name] @ weights)
        apart = sampled[name] - sampled[reference]
        low, high = np.percentile(apart, _LEVEL)
        left = best - curves[name]
        spent = [record.spent for record in records[name]]
        found[name] = Findings(
            accuracy=accuracy,
            interval=tuple(np.percentile(sampled[name], _LEVEL).tolist()),
            seeds=tuple(float((one * weights).sum(-1).mean()) for one in each[name]),
            difference=(accuracy - float(means[reference] @ weights), float(low), float(high)),
            worst_case=float(worst[name].mean()),
            regret=(float(left.mean()), float(left.max())),
            worst_case_regret=float((best_worst - worst[name]).mean()),
            networks=float(np.mean([len(record.networks) - 2 for record in records[name]])),
            excess=max(map(_excess, records[name])),
            spent=float(np.mean([one.flops for one in spent])),
            seconds=float(np.mean([one.seconds for one in spent])),
            images=float(np.mean([one.images for one in spent])),
        )
    return found


def _excess(record: Record) -> float:
    costs = {row["cfg_id"]: row["flops"] for row in record.tested}
    chosen = zip(record.chosen(), limits_of(record.networks), strict=True)
    return max(0.0, *(float(costs[cfg_id]) / limit - 1 for cfg_id, limit in chosen))


def _resampled(weights: Figures) -> Figures:
    """Weights of typefaces in samples of as many, drawn with replacement, `[samples, typefaces]`."""
    random, count = np.random.default_rng(0), len(weights)
    times = random.multinomial(count, np.full(count, 1 / count), size=_SAMPLES) * weights
    found: Figures = times / times.sum(1, keepdims=True)
    return found

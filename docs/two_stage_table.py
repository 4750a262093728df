"""Measure what an evaluation in two stages costs and loses, and print the table of docs/front.md.

    PYTHONPATH=. python docs/two_stage_table.py [NAME=]LEDGER...

NAME is the ledger's in the table, by default that of its file or folder. A ledger with hits beside it is evaluated
again from them, with parts drawn by several seeds. Published ledgers have only accuracies; their hits are drawn so that
the stitches have these accuracies, and neighbours by cost disagree on as many images as stitches usually do.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from stitchkit.errors import InputError
from stitchkit.measure.formulas import Bits
from stitchkit.measure.hits import hits_beside
from stitchkit.measure.ledger import check_figures, read_rows
from stitchkit.measure.pareto import is_anchor
from stitchkit.measure.two_stage import stratified_part, survivors

RUNS = 8
IMAGES = 50_000
"""Of a simulated evaluation, as ImageNet's validation split has."""
DISAGREEMENT = 0.085
"""Share of images on which one of two neighbours by cost is right and the other is not."""
SHARES = (0.1, 0.2)
WITHIN = (None, 0.2, 0.5, 2)
"""Points; None takes the front of the part as it is."""
HEAD = (
    "| ledger | hits | first images | within | cost | finished | regret, mean | worst |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- |\n"
)
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Space:
    """The stitches of a ledger, from cheap to costly.

    Args:
        cfg_ids: The stitches.
        flops: Of each stitch.
        anchors: Places of those that are uncut, as far as the ledger names them.
        labels: The class of each image.
        right: The hits `[stitches, images]` of a run, by its number.
        is_simulated: Whether they are drawn.
    """

    name: str
    cfg_ids: list[int]
    flops: list[int]
    anchors: list[int]
    labels: list[int]
    right: Callable[[int], Bits]
    is_simulated: bool


def read_space(argument: str) -> Space:
    """The stitches of a ledger, given as `NAME=FILE` or `FILE`, with the hits beside it or simulated ones."""
    name, _, file = argument.rpartition("=")
    path = Path(file)
    rows, hits = read_rows(path), hits_beside(path)
    check_figures(rows, ("acc1", "flops"))
    rows.sort(key=lambda row: (row["flops"], -row["acc1"]))
    if not name and path.suffix == ".txt":
        name = path.parent.name if path.stem == "stitches_res" else "/".join(path.parent.parts[-2:])
    name = name or path.stem
    cfg_ids, flops = [row["cfg_id"] for row in rows], [row["flops"] for row in rows]
    anchors = [place for place, row in enumerate(rows) if is_anchor(row)]
    if hits is None:
        shares = [row["acc1"] / 100 for row in rows]
        between = correlation(shares)
        return Space(name, cfg_ids, flops, anchors, [0] * IMAGES, lambda run: simulated(shares, between, run), True)
    hits, known = hits.of(cfg_ids), hits.labels >= 0
    if not hits.seen[:, known].all():
        raise InputError(f"not every stitch of '{path}' has seen all images; evaluate it without --eval-images")
    right = hits.right[:, known]
    return Space(name, cfg_ids, flops, anchors, hits.labels[known].tolist(), lambda _: right, False)


def simulated(shares: Sequence[float], between: float, seed: int, images: int = IMAGES) -> Bits:
    """Hits `[networks, images]` of networks with these accuracies, by a Gaussian copula with one factor.

    Each image has a difficulty that all networks share; `between` is the correlation that this gives two of them.
    """
    random = np.random.default_rng(seed)
    common, limits = random.standard_normal(images), np.array([*map(NormalDist().inv_cdf, shares)])
    own = random.standard_normal((len(shares), images), np.float32)
    latent = np.sqrt(between) * common + np.sqrt(1 - between) * own
    return np.asarray(latent < limits[:, None])


def correlation(shares: Sequence[float]) -> float:
    """The correlation by which neighbours disagree on as many images as stitches usually do."""
    low, high = 0.0, 1.0
    for _ in range(10):
        middle = (low + high) / 2
        right = simulated(shares, middle, seed=0, images=10_000)
        is_low = float((right[1:] != right[:-1]).mean()) > DISAGREEMENT
        low, high = (middle, high) if is_low else (low, middle)
    return middle


def measure(space: Space, share: float, within: float | None) -> list[str]:
    """The cells of a row: means over the runs."""
    found = [run(space, space.right(seed), share, within, seed) for seed in range(RUNS)]
    cost, finished, mean, worst = np.mean(found, axis=0)
    return [
        f"{share * len(space.labels):,.0f}",
        "front of the part" if within is None else f"{within:g}",
        f"{100 * cost:.0f} %",
        f"{finished:.0f} of {len(space.flops)}",
        f"{mean:.3f}",
        f"{worst:.2f}",
    ]


def run(space: Space, right: Bits, share: float, within: float | None, seed: int) -> tuple[float, int, float, float]:
    """Cost as a share of the FLOPs of evaluating all on all, stitches on all images, and mean and worst regret."""
    part, flops = stratified_part(space.labels, round(share * len(space.labels)), seed), np.array(space.flops)
    truth, first = 100 * right.mean(axis=1), 100 * right[:, part].mean(axis=1)
    if within is None:
        return share, 0, *regrets(truth, first, flops)
    kept = left(space, right[:, part], within)
    cost = share + (1 - share) * float(flops[kept].sum() / flops.sum())
    judged = np.full(len(flops), -np.inf)
    judged[kept] = truth[kept]
    return cost, len(kept), *regrets(truth, judged, flops)


def left(space: Space, right: Bits, within: float) -> list[int]:
    """The places of the stitches that the first images leave, of which these are the hits."""
    return survivors(right.sum(axis=1).tolist(), right.shape[1], space.flops, within, space.anchors)


def regrets(truth: Floats, judged: Floats, flops: npt.NDArray[np.int64]) -> tuple[float, float]:
    """How many points are lost, on average and at worst, by what seems best within the budgets of the true front."""
    lost, best = [], -np.inf
    for budget in np.unique(flops):
        within = np.flatnonzero(flops <= budget)
        if truth[within].max() > best:  # a point of the front
            best = truth[within].max()
            lost.append(best - truth[within[judged[within].argmax()]])
    return float(np.mean(lost)), float(np.max(lost))


def main(ledgers: Sequence[str]) -> None:
    """Print the table."""
    print(HEAD, end="")
    for space in map(read_space, ledgers):
        for share in SHARES:
            for within in WITHIN:
                kind = "simulated" if space.is_simulated else "its own"
                print(f"| {' | '.join([f'`{space.name}`', kind, *measure(space, share, within)])} |", flush=True)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except InputError as error:
        sys.exit(str(error))

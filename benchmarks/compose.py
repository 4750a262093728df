"""Composing networks from fragments: activations and scores computed once against all anew for each candidate."""

from __future__ import annotations

import math
import multiprocessing
import random
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.command import Options, command
from benchmarks.timing import Check, Result, alternate, ratio
from stitchkit import InputError, StitchConfig
from stitchkit.model.similarity import align, sample
from stitchkit.networks.layout import as_rows
from stitchkit.settings.stitch_config import AnchorSpec
from stitchnet.activations import Activation, run
from stitchnet.composition import Composition
from stitchnet.fragments import Fragment
from stitchnet.joint import JointMap, fit_joint, kept
from stitchnet.pool import Pool
from stitchnet.scores import Scores
from stitchnet.search import Search

FIVE = "the five published networks"
_ROWS_PER_CHANNEL = 10
_SEED = 1
_WIDTH = 2


def measure(options: Options) -> Result:
    """Time a drawn composition and one step of scores; compare scores, their order and what is drawn."""
    pool = _pool(options)

    def ours() -> str:
        return _search(_pool(options)).draw().name

    def reference() -> str:
        return PlainSearch(pool).draw(random.Random(_SEED))

    # The reference takes minutes at full size, so each way is timed once.
    seconds, drawn = alternate({"ours": ours, "reference": reference}, rounds=1, quick=True)
    start = pool.starts[-1]
    steps, ranked = alternate(
        {
            "ours": lambda: _search(pool, width=None).ranked(Composition(start)),
            "exact": lambda: _search(pool, exact=True, width=None).ranked(Composition(start)),
            "reference": lambda: PlainSearch(pool).ranked([SearchStep(start, None)]),
        },
        rounds=1,
        quick=True,
    )
    exact = PlainSearch(pool, exact=True).ranked([SearchStep(start, None)])
    scores = [{fragment: score for score, fragment in ranked[way]} for way in ("ours", "reference")]
    order = [[fragment.name for _, fragment in one] for one in (ranked["exact"], exact)]
    shape = "x".join(map(str, pool.images.shape[1:]))
    return Result(
        "compose",
        f"one drawn composition, K 2, depth 10, {len(pool.fragments)} fragments of {', '.join(pool.specs)}, "
        f"{len(pool.images)} images of {shape}, {options.label}",
        seconds,
        (
            Check("scores of one step", _difference(*scores), 1e-4),
            Check("candidates that stand elsewhere in the order, all rows", _misplaced(*order), 0),
            Check("fragments of what was drawn that differ", _misplaced(*_paths(drawn)), 0),
        ),
        {
            "step_ratio": ratio(steps, "reference", "ours"),
            "step_ratio_all_rows": ratio(steps, "reference", "exact"),
            "step_s": steps["ours"][0],
            "peak_gb": _peak_gb(options),
        },
    )


def _difference(ours: dict[Fragment, float], reference: dict[Fragment, float]) -> float:
    """The largest difference of two scores of a fragment; infinite if only one way scores it."""
    if ours.keys() != reference.keys():
        return math.inf
    return max(abs(ours[fragment] - score) for fragment, score in reference.items())


def _misplaced(ours: list[str], reference: list[str]) -> int:
    return sum(a != b for a, b in zip(ours, reference, strict=False)) + abs(len(ours) - len(reference))


def _paths(drawn: dict[str, str]) -> tuple[list[str], list[str]]:
    return drawn["ours"].split(" > "), drawn["reference"].split(" > ")


def _pool(options: Options) -> Pool:
    """Networks with seeded random weights, and what their fragments are used to."""
    torch.manual_seed(0)
    nets: list[AnchorSpec | str] | None = ["alexnet", "mobilenet_v3_small"] if options.quick else None
    if options.stitch_config != FIVE:
        nets = list(StitchConfig.load(options.stitch_config).anchors)
    count, side = (4, 64) if options.quick else (32, 224)
    images = torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))
    return Pool(images, nets, pretrained=False)


def _search(pool: Pool, *, exact: bool = False, width: int | None = _WIDTH) -> Search:
    scores = Scores(rows_per_channel=None if exact else _ROWS_PER_CHANNEL)
    return Search(pool, threshold=0, total_threshold=0, max_depth=10, width=width, seed=_SEED, scores=scores)


def _compose(options: Options) -> float | None:
    search = _search(_pool(options), exact=True)
    search.build(search.draw())
    # Not the peak of `getrusage`: a process starts with that of the one that started it.
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 / 1e9 for line in lines if line.startswith("VmHWM:")), None)


def _peak_gb(options: Options) -> float | None:
    """Peak memory in 10^9 bytes of a process that composes one network by ours; None where it is not told."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(_compose, options).result()


@dataclass(frozen=True)
class SearchStep:
    """A fragment and the joint before it."""

    fragment: Fragment
    joint: JointMap | None


class PlainSearch:
    """The search as it is published, written plainly: for every candidate all that its score needs is run again.

    Args:
        pool: The fragments; what their inputs are is not taken from it.
        exact: Compare all rows, not 10 for each channel.
    """

    def __init__(self, pool: Pool, *, exact: bool = False):
        self.pool = pool
        self.rows_per_channel = None if exact else _ROWS_PER_CHANNEL

    def output(self, path: list[SearchStep]) -> Activation:
        """What a composition gives."""
        x = self.pool.images
        for step in path:
            if step.joint is not None:
                x = run(kept(step.joint), x)
            x = run(step.fragment.module, x)
        return Activation(x, path[-1].fragment.layout)

    def input_of(self, fragment: Fragment) -> Activation:
        """What a fragment is used to."""
        place = self.pool.fragments.index(fragment)
        return self.output([SearchStep(one, None) for one in self.pool.fragments[place - fragment.index : place]])

    def score(self, path: list[SearchStep], fragment: Fragment) -> float:
        """CKA by its definition: with centred kernels where they can be had."""
        x, y = align(self.output(path).value, self.input_of(fragment).value)
        a, b = (as_rows(value).double() for value in sample(x, y, self.rows_per_channel, 0))
        a, b = a - a.mean(0), b - b.mean(0)
        if self.rows_per_channel is None:  # kernels of all rows would be terabytes
            return float((a.T @ b).square().sum() / ((a.T @ a).norm() * (b.T @ b).norm()))
        kernels = [_centred(rows @ rows.T) for rows in (a, b)]
        return float((kernels[0] * kernels[1]).sum() / (kernels[0].norm() * kernels[1].norm()))

    def ranked(self, path: list[SearchStep]) -> list[tuple[float, Fragment]]:
        """All fragments that could follow, the best first."""
        used = {step.fragment for step in path}
        vector = path[-1].fragment.layout.is_vector
        scored = []
        for fragment in self.pool.followers:
            place = self.pool.fragments.index(fragment)
            if fragment in used or (vector and not self.pool.fragments[place - 1].layout.is_vector):
                continue
            if len(path) < 9 or fragment.is_end:
                scored.append((self.score(path, fragment), fragment))
        return sorted(scored, key=lambda pair: -pair[0])

    def draw(self, chance: random.Random) -> str:
        """The name of a composition by chance."""
        for _ in range(100):
            path = [SearchStep(chance.choice(self.pool.starts), None)]
            while not path[-1].fragment.is_end and (
                kept_ones := [one for one in self.ranked(path)[:_WIDTH] if one[0] > 0]
            ):
                fragment = chance.choice(kept_ones)[1]
                x, y = self.output(path), self.input_of(fragment)
                same = x.tensor.shape == y.tensor.shape and torch.equal(x.tensor, y.tensor)
                path.append(SearchStep(fragment, None if same else fit_joint(x, y)))
            if path[-1].fragment.is_end:
                return _name(path)
        raise InputError("nothing that was drawn reaches an end; change the seed")


def _centred(kernel: torch.Tensor) -> torch.Tensor:
    centre = torch.eye(len(kernel), dtype=kernel.dtype) - 1 / len(kernel)
    return centre @ kernel @ centre


def _name(path: list[SearchStep]) -> str:
    composition: Composition | None = None
    for step in path:
        composition = Composition(step.fragment, parent=composition)
    assert composition is not None
    return composition.name


if __name__ == "__main__":
    sys.exit(command(measure, __doc__, config=FIVE))

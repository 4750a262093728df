"""Composing networks from fragments: activations computed once, against everything recomputed for each candidate."""

from __future__ import annotations

import math
import multiprocessing
import random
import re
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import zip_longest
from pathlib import Path

import torch

from benchmarks.frame import Check, Options, Result, command, ratio
from stitchkit import InputError, StitchConfig
from stitchkit.model.similarity import align, sample
from stitchkit.networks.layout import as_rows
from stitchkit.settings.stitch_config import AnchorSpec
from stitchnet.activations import Activation, Scores, run
from stitchnet.composition import Composition, Pool
from stitchnet.fragments import Fragment
from stitchnet.joint import JointLayer, fit_joint
from stitchnet.search import Search

FIVE = "the five published networks"
_ROWS_PER_CHANNEL = 10
_SEED = 1
_WIDTH = 2
_DEPTH = 10


def measure(options: Options) -> Result:
    """Time a drawn composition and one step of scores; compare scores, their order and the composition."""
    pool = _pool(options)

    def ours() -> str:
        return _search(_pool(options)).draw().name

    def reference() -> str:
        return PlainSearch(pool).draw(random.Random(_SEED))

    # The reference takes minutes at full size, so each way is timed once.
    seconds, drawn = options.alternate({"ours": ours, "reference": reference}, rounds=0)
    paths = [name.split(" > ") for name in (drawn["ours"], drawn["reference"])]
    start = pool.starts[-1]
    ways = {
        "ours": lambda: _search(pool, width=None).ranked(Composition(start)),
        "exact": lambda: _search(pool, exact=True, width=None).ranked(Composition(start)),
        "reference": lambda: PlainSearch(pool).ranked([(start, None)]),
    }
    steps, ranked = options.alternate(ways, rounds=0)
    exact = PlainSearch(pool, exact=True).ranked([(start, None)])
    scores = [{fragment: score for score, fragment in ranked[way]} for way in ("ours", "reference")]
    order = [[fragment.name for _, fragment in one] for one in (ranked["exact"], exact)]
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        peak_gb = process.submit(_peak_gb, options).result()
    shape = "x".join(map(str, pool.images.shape[1:]))
    return Result(
        "compose",
        f"one drawn composition, K {_WIDTH}, depth {_DEPTH}, "
        f"{len(pool.fragments)} fragments of {', '.join(pool.specs)}, "
        f"{len(pool.images)} images of {shape}, {options.label}",
        seconds,
        (
            Check("scores of one step", _difference(*scores), 1e-4),
            Check("candidates that stand elsewhere in the order, all rows", _misplaced(*order), 0),
            Check("fragments of what was drawn that differ", _misplaced(*paths), 0),
        ),
        {
            "step_ratio": ratio(steps, "reference", "ours"),
            "step_ratio_all_rows": ratio(steps, "reference", "exact"),
            "step_s": steps["ours"][0],
            "peak_gb": peak_gb,
        },
    )


def _difference(ours: dict[Fragment, float], reference: dict[Fragment, float]) -> float:
    """The largest difference between two scores of a fragment; infinite if only one way scores it."""
    if ours.keys() != reference.keys():
        return math.inf
    return max(abs(ours[fragment] - score) for fragment, score in reference.items())


def _misplaced(ours: list[str], reference: list[str]) -> int:
    return sum(a != b for a, b in zip_longest(ours, reference))


def _pool(options: Options) -> Pool:
    """The fragments of networks with seeded random weights."""
    torch.manual_seed(0)
    nets: list[AnchorSpec | str] | None = ["alexnet", "mobilenet_v3_small"] if options.quick else None
    if options.stitch_config != FIVE:
        nets = list(StitchConfig.load(options.stitch_config).anchors)
    count, side = (4, 64) if options.quick else (32, 224)
    images = torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))
    return Pool(images, nets, pretrained=False)


def _search(pool: Pool, *, exact: bool = False, width: int | None = _WIDTH) -> Search:
    scores = Scores(rows_per_channel=None if exact else _ROWS_PER_CHANNEL)
    return Search(pool, threshold=0, total_threshold=0, max_depth=_DEPTH, width=width, seed=_SEED, scores=scores)


def _peak_gb(options: Options) -> float | None:
    """Peak memory of this process in 10^9 bytes after ours composes one network; None if the system does not tell."""
    search = _search(_pool(options), exact=True)
    search.build(search.draw())
    # Not the peak of `getrusage`: a process starts with that of the one that started it.
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+)", status.read_text()) if status.exists() else None
    return int(found[1]) * 1024 / 1e9 if found else None


Steps = Sequence[tuple[Fragment, JointLayer | None]]
"""Fragments in the order they run, each with the joint before it."""


class PlainSearch:
    """The published search, written plainly: everything that a score needs is run again for every candidate.

    Args:
        pool: The fragments; the inputs that they are used to are not taken from it.
        exact: Compare all rows, not 10 per channel.
    """

    def __init__(self, pool: Pool, *, exact: bool = False):
        self.pool = pool
        self.rows_per_channel = None if exact else _ROWS_PER_CHANNEL

    def output(self, path: Steps) -> Activation:
        """The output of a composition."""
        x = self.pool.images
        for fragment, joint in path:
            if joint is not None:
                x = run(joint, x)
            x = run(fragment.module, x)
        return Activation(x, path[-1][0].layout)

    def input_of(self, fragment: Fragment) -> Activation:
        """The input that a fragment is used to, in the network that it comes from."""
        place = self.pool.fragments.index(fragment)
        return self.output([(one, None) for one in self.pool.fragments[place - fragment.index : place]])

    def score(self, path: Steps, fragment: Fragment) -> float:
        """CKA by its definition, with centred kernels where they fit into memory."""
        x, y = align(self.output(path).value, self.input_of(fragment).value)
        a, b = (as_rows(value).double() for value in sample(x, y, self.rows_per_channel, 0))
        a, b = a - a.mean(0), b - b.mean(0)
        if self.rows_per_channel is None:  # kernels of all rows would take terabytes; this form is equal and small
            return float((a.T @ b).square().sum() / ((a.T @ a).norm() * (b.T @ b).norm()))
        centre = torch.eye(len(a), dtype=a.dtype) - 1 / len(a)
        k, m = (centre @ (rows @ rows.T) @ centre for rows in (a, b))
        return float((k * m).sum() / (k.norm() * m.norm()))

    def ranked(self, path: Steps) -> list[tuple[float, Fragment]]:
        """All fragments that could follow, best first."""
        used = {fragment for fragment, _ in path}
        vector = path[-1][0].layout.is_vector
        scored = []
        for fragment in self.pool.followers:
            place = self.pool.fragments.index(fragment)
            if fragment in used or (vector and not self.pool.fragments[place - 1].layout.is_vector):
                continue
            if len(path) < _DEPTH - 1 or fragment.is_end:
                scored.append((self.score(path, fragment), fragment))
        return sorted(scored, key=lambda pair: -pair[0])

    def draw(self, chance: random.Random) -> str:
        """The name of a random composition."""
        for _ in range(100):  # a path ends early where no fragment has a positive score
            composition = Composition(chance.choice(self.pool.starts))
            path: list[tuple[Fragment, JointLayer | None]] = [(composition.fragment, None)]
            while not composition.fragment.is_end:
                followers = [fragment for score, fragment in self.ranked(path)[:_WIDTH] if score > 0]
                if not followers:
                    break
                fragment = chance.choice(followers)
                x, y = self.output(path), self.input_of(fragment)
                same = x.tensor.shape == y.tensor.shape and torch.equal(x.tensor, y.tensor)
                path.append((fragment, None if same else fit_joint(x, y)))
                composition = Composition(fragment, parent=composition)
            if composition.fragment.is_end:
                return composition.name
        raise InputError("no drawn path reaches an end; change the seed")


if __name__ == "__main__":
    raise SystemExit(command(measure, __doc__, config=FIVE))

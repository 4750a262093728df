"""Search for compositions: from every start, the fragments that fit best, until an end is reached."""

from __future__ import annotations

import heapq
import inspect
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, overload

import numpy as np
import torch

from stitchkit.errors import InputError, unknown
from stitchnet.composition import Composition
from stitchnet.costs import Costs
from stitchnet.fragments import Fragment
from stitchnet.joint import unjoinable
from stitchnet.memory import Outputs
from stitchnet.net import Net, build
from stitchnet.networks import Nets
from stitchnet.pool import Pool
from stitchnet.scores import Scores

ORDERS = ("depth", "best")
_PUBLISHED = {"total_threshold": "totalThreshold", "max_depth": "maxDepth", "width": "K"}
"""What the published call says for options of ours."""
_DRAWS = 100
"""How often a drawn composition may end nowhere."""


@dataclass
class Counts:
    """What a search has done so far.

    Args:
        tried: Pairs of a composition and a next fragment that were scored.
        pruned: Those among the best that a threshold or the budget left out.
        found: Compositions that reached an end.
        skipped: Pairs that cannot be joined, by reason.
    """

    tried: int = 0
    pruned: int = 0
    found: int = 0
    skipped: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        skipped = "".join(f", {count} skipped: {reason}" for reason, count in self.skipped.items())
        return f"{self.tried} tried, {self.pruned} pruned, {self.found} found{skipped}"


class Search:
    """All compositions of the fragments of some networks that pass the thresholds. Iterating gives `(score, net)`.

    Args:
        data: The stitching images `[B, C, H, W]`, normalised as ImageNet's; or the pool of another search,
            with its images and networks.
        threshold: A fragment is joined if the score is above it.
        total_threshold: A composition is pruned if the product of its scores is below it.
        max_depth: Fragments in a composition, at most.
        width: How many of the best next fragments are tried, at each step; all by default.
        nets: The networks; the five published ones by default. Modules are put into evaluation mode.
        pretrained: Fetch the weights of networks given by name; else they are random.
        order: `depth`: as published, each composition to its end before the next; `best`: the highest score first.
        seed: Of what `draw` draws.
        max_macs: Compositions with more MACs are left out.
        max_params: Likewise for parameters.
        drops_used_last: Fragments used before are dropped after the best were kept, as published, so that fewer remain.
        is_folded: Joints are folded into the layers behind them; else they stay layers of their own.
        scores: How fragments are scored, also by name.

    Raises:
        InputError: If the networks, the images or the options cannot be used.

    Source: StitchNet, algorithm 1.
    """

    def __init__(
        self,
        data: np.ndarray | torch.Tensor | Pool,
        *,
        threshold: float = 0.9,
        total_threshold: float = 0.5,
        max_depth: int = 10,
        width: int | None = None,
        nets: Nets | None = None,
        pretrained: bool = True,
        order: str = "depth",
        seed: int = 0,
        max_macs: float | None = None,
        max_params: float | None = None,
        drops_used_last: bool = False,
        is_folded: bool = True,
        scores: Scores | str | None = None,
    ):
        if order not in ORDERS:
            raise unknown("order of the search", order, ORDERS)
        if max_depth < 2 or (width is not None and width < 1):
            raise InputError(f"max_depth is {max_depth} and K {width}; they must be at least 2 and 1")
        if isinstance(data, Pool) and nets is not None:
            raise InputError("a pool has its own networks; leave nets out, or give images")
        self.threshold, self.total_threshold = threshold, total_threshold
        self.max_depth, self.width, self.order = max_depth, width, order
        self.max_macs, self.max_params = max_macs, max_params
        self.drops_used_last, self.is_folded = drops_used_last, is_folded
        self.scores = Scores(scores) if isinstance(scores, str) else scores or Scores()
        self.counts = Counts()
        self.on_step: Callable[[Counts], None] = lambda _: None
        """Called with the counts whenever the next fragments of a composition were scored."""
        self.pool = data if isinstance(data, Pool) else Pool(data, nets, pretrained=pretrained)
        self._outputs = Outputs(self.pool)
        self._random = random.Random(seed)
        self._costs = Costs(self.pool, is_folded=is_folded)

    def __iter__(self) -> Iterator[tuple[float, Net]]:
        for composition in self.compositions():
            yield composition.score, self.build(composition)

    def build(self, composition: Composition) -> Net:
        """The network of a composition; it has weights of its own."""
        joints = [self._outputs.joint(step) for step in composition.path]
        return build(composition, joints, self.pool, is_folded=self.is_folded)

    def compositions(self) -> Iterator[Composition]:
        """The compositions that reach an end, without their networks."""
        frontier: list[tuple[float, int, Composition]] = []
        count = 0
        for start in reversed(self.pool.starts):
            frontier.append((-1.0, -len(frontier), Composition(start)))
        if self.order == "best":
            heapq.heapify(frontier)
        while frontier:
            composition = (heapq.heappop(frontier) if self.order == "best" else frontier.pop())[-1]
            if not self._join(composition):
                continue
            if composition.fragment.is_end:
                self.counts.found += 1
                yield composition
                continue
            following = self.following(composition)
            for child in following if self.order == "best" else reversed(following):
                count += 1
                entry = (-child.score, count, child)
                heapq.heappush(frontier, entry) if self.order == "best" else frontier.append(entry)

    def draw(self) -> Composition:
        """A composition by chance: a start, and at each step one of the fragments that could be tried.

        Raises:
            InputError: If none reaches an end.
        """
        for _ in range(_DRAWS):
            composition = Composition(self._random.choice(self.pool.starts))
            while not composition.fragment.is_end:
                following = self.following(composition, is_drawn=True)
                if not following or not self._join(following[0]):
                    break
                composition = following[0]
            else:
                self.counts.found += 1
                return composition
        raise InputError(
            f"{_DRAWS} compositions were drawn and none reached an end ({self.counts}); lower the thresholds, "
            "raise K, or give more networks"
        )

    def following(self, composition: Composition, *, is_drawn: bool = False) -> list[Composition]:
        """The compositions with one more fragment that are to be tried, best first.

        Args:
            composition: One that has not reached an end.
            is_drawn: Draw one of them, before it is known what the thresholds of the whole say of it.
        """
        ranked = self.ranked(composition)
        kept = [(score, fragment) for score, fragment in ranked if score > self.threshold]
        self.counts.pruned += len(ranked) - len(kept)
        if is_drawn and kept:
            kept = [self._random.choice(kept)]
        children = [Composition(fragment, composition.score * score, score, composition) for score, fragment in kept]
        passing = [child for child in children if child.score >= self.total_threshold]
        affordable = [child for child in passing if self._is_affordable(child)]
        self.counts.pruned += len(children) - len(affordable)
        self.on_step(self.counts)
        return affordable

    def ranked(self, composition: Composition) -> list[tuple[float, Fragment]]:
        """The best next fragments with their scores, best first; those used already are left out."""
        used = set(composition.fragments)
        x = self._outputs.of(composition)
        scored = []
        for fragment in self.pool.followers:
            if len(used) >= self.max_depth - 1 and not fragment.is_end:
                continue
            if fragment in used and not self.drops_used_last:
                continue
            y = self.pool.input_of(fragment)
            if reason := unjoinable(x.layout, y.layout):
                self.counts.skipped[reason] += 1
                continue
            self.counts.tried += 1
            scored.append((self.scores(x, y), fragment))
            if y is not x:
                y.forget()
        x.forget()
        scored.sort(key=lambda pair: -pair[0])
        return [(score, fragment) for score, fragment in scored[: self.width] if fragment not in used]

    def _join(self, composition: Composition) -> bool:
        """Fit the last joint of a composition; tell and count if that cannot be done."""
        try:
            self._outputs.joint(composition)
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            self.counts.skipped["the map of a joint cannot be computed"] += 1
            return False
        return True

    def _is_affordable(self, composition: Composition) -> bool:
        """Whether a composition is within the budget so far."""
        if self.max_macs is None and self.max_params is None:
            return True
        macs, params = self._costs.of(composition)
        limits = [math.inf if limit is None else limit for limit in (self.max_macs, self.max_params)]
        return macs <= limits[0] and params <= limits[1]


@overload
def generate(
    data: np.ndarray | torch.Tensor | Pool, threshold: float = ..., totalThreshold: float = ..., maxDepth: int = ...,
    sample: Literal[False] = ..., K: int | None = ..., **options: Any,
) -> Iterator[tuple[float, Net]]: ...  # fmt: skip


@overload
def generate(
    data: np.ndarray | torch.Tensor | Pool, threshold: float = ..., totalThreshold: float = ..., maxDepth: int = ..., *,
    sample: Literal[True], K: int | None = ..., **options: Any,
) -> tuple[float, Net]: ...  # fmt: skip


def generate(
    data: np.ndarray | torch.Tensor | Pool,
    threshold: float = 0.9,
    totalThreshold: float = 0.5,
    maxDepth: int = 10,
    sample: bool = False,
    K: int | None = None,
    **options: Any,
) -> Iterator[tuple[float, Net]] | tuple[float, Net]:
    """Compose networks for some images: the published call.

    Args:
        data: The stitching images `[B, C, H, W]`, normalised as ImageNet's; 32 are enough. Or the pool of a
            `Search`, to use its fragments again.
        threshold: A fragment is joined if the score is above it.
        totalThreshold: A composition is pruned if the product of its scores is below it.
        maxDepth: Fragments in a composition, at most.
        sample: Draw one composition.
        K: How many of the best next fragments are tried, at each step; all by default.
        options: Of `Search`, such as `nets=["resnet50", "vgg16"]`, `seed=1`, `order="best"`, `max_macs=2e9` or
            `scores=Scores("r2")`.

    Returns:
        Scores and networks, as they are found; with `sample` one score and network.

    Raises:
        InputError: If the images or options cannot be used, or nothing that was drawn reaches an end.

    Source: StitchNet, algorithm 1.
    """
    known = inspect.signature(Search).parameters.keys() - {"data", "threshold", *_PUBLISHED}
    for name in options:
        if name in _PUBLISHED:
            raise InputError(f"option '{name}' of `Search` is '{_PUBLISHED[name]}' of `generate`; write it so")
        if name not in known:
            raise unknown("option of generate", name, sorted({*known, "threshold", *_PUBLISHED.values()}))
    search = Search(data, threshold=threshold, total_threshold=totalThreshold, max_depth=maxDepth, width=K, **options)
    if not sample:
        return iter(search)
    composition = search.draw()
    return composition.score, search.build(composition)

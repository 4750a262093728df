"""Search for compositions: from every start, the fragments that fit best, until an end is reached."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import numpy as np
import torch
from typing_extensions import TypedDict

from stitchkit.errors import InputError, unknown
from stitchnet.activations import Scores
from stitchnet.composition import Composition, Costs, Outputs, Pool
from stitchnet.fragments import Fragment
from stitchnet.joint import layer
from stitchnet.journal import Journal
from stitchnet.net import Net
from stitchnet.networks import Nets

ORDERS = ("depth", "best")
_PUBLISHED = {"total_threshold": "totalThreshold", "max_depth": "maxDepth", "width": "K"}
"""Our options and their names in the published call."""
_DRAWS = 100  # number of draws; each may end nowhere


class Ranking(TypedDict):
    """The scores of all fragments that may follow a composition, in a journal."""

    output: str
    scores: dict[str, float]
    skipped: dict[str, int]


@dataclass
class Counts:
    """Counts of a search so far.

    Pairs of a composition and a next fragment are tried if they are scored, pruned if a threshold or the budget removes
    them from the best, and skipped, by reason, if they cannot be joined. Found are compositions that reached an end.
    """

    tried: int = 0
    pruned: int = 0
    found: int = 0
    skipped: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        skipped = "".join(f", {count} skipped: {reason}" for reason, count in self.skipped.items())
        return f"{self.tried} tried, {self.pruned} pruned, {self.found} found{skipped}"


class Search:
    """All compositions of the fragments of some networks that pass the thresholds. Iteration yields `(score, net)`.

    Args:
        data: The stitching images `[B, C, H, W]`, normalised as ImageNet's; or the pool of another search,
            with its images and networks.
        threshold: A fragment is joined if its score is above this.
        total_threshold: A composition is pruned if the product of its scores is below this.
        max_depth: Maximum number of fragments in a composition.
        width: Number of best next fragments to try at each step; by default all.
        nets: The networks; the five published ones by default. Modules are switched to evaluation mode.
        pretrained: Download the weights of named networks; otherwise they are random.
        order: `depth`: each composition to its end before the next, as published; `best`: the highest score first.
        seed: Seed of `draw`.
        max_macs: Skip compositions with more MACs.
        max_params: Skip compositions with more parameters.
        drops_used_last: Drop used fragments only after choosing the best ones, as published, so that fewer remain.
        scores: The scores of fragments, or the name of a measure.

    Attributes:
        counts: Counts so far.
        on_step: Called with the counts after the next fragments of a composition are scored.
        journal: Keeps the scores, so that repeating the search does not recompute them.

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
        scores: Scores | str | None = None,
    ):
        if order not in ORDERS:
            raise unknown("order of the search", order, ORDERS)
        if max_depth < 2 or (width is not None and width < 1):
            raise InputError(f"max_depth is {max_depth} and K {width}; they must be at least 2 and 1")
        if isinstance(data, Pool) and nets is not None:
            raise InputError("a pool has its own networks; omit nets, or pass images")
        self.threshold, self.total_threshold = threshold, total_threshold
        self.max_depth, self.width, self.order = max_depth, width, order
        self.max_macs = math.inf if max_macs is None else max_macs
        self.max_params = math.inf if max_params is None else max_params
        self.drops_used_last = drops_used_last
        self.scores = Scores(scores) if isinstance(scores, str) else scores or Scores()
        self.counts = Counts()
        self.on_step: Callable[[Counts], None] = lambda _: None
        self.journal: Journal | None = None
        self.pool = data if isinstance(data, Pool) else Pool(data, nets, pretrained=pretrained)
        self._followers = {fragment.name: fragment for fragment in self.pool.followers}
        self._outputs = Outputs(self.pool)
        self._random = random.Random(seed)
        self._costs = Costs(self.pool)

    def __iter__(self) -> Iterator[tuple[float, Net]]:
        for composition in self.compositions():
            yield composition.score, self.build(composition)

    def build(self, composition: Composition) -> Net:
        """The network of a composition, with its own weights."""
        path = composition.path
        layers = [layer(step.fragment, self._outputs.joint(step)) for step in path]
        specs = {step.fragment.network: self.pool.specs[step.fragment.network] for step in path}
        scores = [step.own_score for step in path]
        channels, height, width = self.pool.images.shape[1:]
        size = (channels, height, width)
        return Net(composition.name, composition.score, composition.fragments, layers, scores, size, specs).eval()

    def compositions(self) -> Iterator[Composition]:
        """The compositions that reach an end, without their networks."""
        frontier = [Composition(start) for start in reversed(self.pool.starts)]  # the last one is next
        while frontier:
            composition = frontier.pop()
            if not self._join(composition):
                continue
            if composition.fragment.is_end:
                self.counts.found += 1
                yield composition
                continue
            children = self.following(composition)[::-1]
            if self.order == "best":  # the sort is stable, so of equal scores the oldest is next
                frontier = sorted([*children, *frontier], key=lambda composition: composition.score)
            else:
                frontier += children

    def draw(self) -> Composition:
        """A random composition: a start, then at each step one of the fragments worth trying.

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
        advice = "lower the thresholds, raise K, or add networks"
        raise InputError(f"{_DRAWS} compositions were drawn and none reached an end ({self.counts}); {advice}")

    def following(self, composition: Composition, *, is_drawn: bool = False) -> list[Composition]:
        """The compositions with one more fragment that are worth trying, best first; with `is_drawn`, a random one."""
        ranked = self.ranked(composition)
        kept = [(score, fragment) for score, fragment in ranked if score > self.threshold]
        self.counts.pruned += len(ranked) - len(kept)
        if is_drawn and kept:
            # As published, the draw comes before the total threshold, so it may end nowhere.
            kept = [self._random.choice(kept)]
        children = [Composition(fragment, composition.score * score, score, composition) for score, fragment in kept]
        passing = [child for child in children if child.score >= self.total_threshold and self._is_affordable(child)]
        self.counts.pruned += len(children) - len(passing)
        self.on_step(self.counts)
        return passing

    def ranked(self, composition: Composition) -> list[tuple[float, Fragment]]:
        """The best next fragments with their scores, best first, without those already used."""
        ranking = self._recalled(composition) or self._rank(composition)
        self.counts.tried += len(ranking["scores"])
        self.counts.skipped.update(ranking["skipped"])
        scored = [(score, self._followers[name]) for name, score in ranking["scores"].items()]
        scored.sort(key=lambda pair: -pair[0])
        # With `drops_used_last`, used fragments are part of the ranking and displace others, as published.
        used = composition.fragments
        return [(score, fragment) for score, fragment in scored[: self.width] if fragment not in used]

    def _rank(self, composition: Composition) -> Ranking:
        used = composition.fragments
        x = self._outputs.of(composition)
        scores: dict[str, float] = {}
        skipped: Counter[str] = Counter()
        for name, fragment in self._followers.items():
            if len(used) >= self.max_depth - 1 and not fragment.is_end:
                continue  # only an end fits now
            if fragment in used and not self.drops_used_last:
                continue
            y = self.pool.input_of(fragment)
            if x.layout.is_vector and not y.layout.is_vector:
                skipped["a vector cannot become a map"] += 1
                continue
            scores[name] = self.scores(x, y)
            if y is not x:
                y.forget()  # the resized copies of all inputs would not fit into memory
        x.forget()
        ranking = Ranking(output=x.key.hex(), scores=scores, skipped=dict(skipped))
        if self.journal is not None:
            self.journal.add(ranking, "ranking", composition.name)
        return ranking

    def _recalled(self, composition: Composition) -> Ranking | None:
        """The ranking of a composition in the journal, if it has one."""
        if self.journal is None or (ranking := self.journal.find(Ranking, "ranking", composition.name)) is None:
            return None
        try:
            output = bytes.fromhex(ranking["output"])
            for name, score in ranking["scores"].items():
                # CKA of (x, y) and (y, x) may differ in the last digit; like an unbroken search, keep the first.
                self.scores.remember(output, self.pool.input_of(self._followers[name]).key, score)
        except (KeyError, ValueError) as error:
            raise self.journal.damaged(composition.name) from error
        return ranking

    def _join(self, composition: Composition) -> bool:
        """Whether the last joint of a composition can be fitted; failures are counted."""
        is_joined = self.journal.find(bool, "joint", composition.name) if self.journal else None
        if is_joined is None:
            try:
                self._outputs.joint(composition)
                is_joined = True
            except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
                is_joined = False
            if self.journal is not None:
                self.journal.add(is_joined, "joint", composition.name)
        if not is_joined:
            self.counts.skipped["the map of a joint cannot be computed"] += 1
        return is_joined

    def _is_affordable(self, composition: Composition) -> bool:
        """Whether a composition is within the budget so far; without a budget, no cost is measured."""
        if self.max_macs == self.max_params == math.inf:
            return True
        macs, params = self._costs.of(composition)
        return macs <= self.max_macs and params <= self.max_params


def generate(
    data: np.ndarray | torch.Tensor | Pool,
    threshold: float = 0.9,
    totalThreshold: float = 0.5,
    maxDepth: int = 10,
    sample: bool = False,
    K: int | None = None,
    **options: Any,
) -> Any:
    """Compose networks for some images: the published call.

    Args:
        data: The stitching images `[B, C, H, W]`, normalised as ImageNet's; 32 are enough. Or the pool of a
            `Search`, to reuse its fragments.
        threshold, totalThreshold, maxDepth, K: The arguments `threshold`, `total_threshold`, `max_depth` and `width` of
            `Search`.
        sample: Draw one composition.
        options: Further arguments of `Search`, such as `nets=["resnet50", "vgg16"]` or `scores=Scores("r2")`.

    Returns:
        An iterator over scores and networks, as they are found; with `sample`, one score and network.

    Raises:
        InputError: If the images or options cannot be used, or no draw reaches an end.

    Source: StitchNet, algorithm 1.
    """
    known = [_PUBLISHED.get(name, name) for name in signature(Search).parameters]
    for name in options:
        if name in _PUBLISHED:
            raise InputError(f"option '{name}' of `Search` is called '{_PUBLISHED[name]}' in `generate`; use that name")
        if name not in known:
            raise unknown("option of generate", name, known)
    search = Search(data, threshold=threshold, total_threshold=totalThreshold, max_depth=maxDepth, width=K, **options)
    if not sample:
        return iter(search)
    composition = search.draw()
    return composition.score, search.build(composition)

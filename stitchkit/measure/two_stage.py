"""A part of the images by the class shares of all, and the networks that it leaves on the front: for `--focus`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

import numpy as np


def stratified_part(labels: Sequence[int], count: int, seed: int) -> list[int]:
    """The sorted numbers of a part of the images, drawn by the seed with the class shares of all.

    Each class has its share of `count`, rounded so that the part has `count` images: those with the largest remainders
    are rounded up. A part without regard to classes is that of equal labels.

    Args:
        labels: The class of each image.
        count: Images of the part; with as many as there are or more, all of them.
        seed: Decides which images of a class are drawn.
    """
    images = Counter(labels)
    exact = {label: min(count, len(labels)) * number for label, number in sorted(images.items())}
    wanted = {label: share // len(labels) for label, share in exact.items()}
    rest = min(count, len(labels)) - sum(wanted.values())
    for label in sorted(exact, key=lambda label: -(exact[label] % len(labels)))[:rest]:
        wanted[label] += 1
    part = []
    for number in np.random.default_rng(seed).permutation(len(labels)).tolist():
        if wanted[labels[number]]:
            wanted[labels[number]] -= 1
            part.append(number)
    return sorted(part)


def survivors(
    right: Sequence[int], seen: int, costs: Sequence[float], within: float, always: Collection[int] = ()
) -> list[int]:
    """The numbers of the networks that may still be on the front, after all have seen the same images.

    A network is out if one that costs as much or less is more accurate by over `within` points.

    Args:
        right: Images that each network classifies correctly.
        seen: Images that each has seen.
        costs: The cost of each, such as FLOPs.
        within: Points of top-1 accuracy.
        always: Numbers of networks that stay in any case.
    """
    kept, best = set(always), 0
    for number in sorted(range(len(right)), key=lambda number: (costs[number], -right[number])):
        best = max(best, right[number])
        if 100 * (best - right[number]) <= within * seen:
            kept.add(number)
    return sorted(kept)

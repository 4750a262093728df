"""Progress bars: on the primary rank, on a terminal, gone when done."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

from stitchkit.distributed import World

Item = TypeVar("Item")


def progress(items: Iterable[Item], world: World, what: str, *, unit: str, total: int | None = None) -> tqdm[Item]:
    """A labelled bar around `items`, for loops in which a person waits; on the primary rank alone.

    Args:
        items: Iterated over.
        world: This process among all.
        what: Shown before the bar.
        unit: Name of one item.
        total: Number of items, where `items` has no length.
    """
    hidden = None if world.is_primary else True  # None leaves it to tqdm: hidden unless on a terminal
    return tqdm(items, desc=what, unit=unit, total=total, leave=False, disable=hidden)

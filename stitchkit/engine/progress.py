"""Progress bars: on the primary rank, on a terminal, gone when done."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

from stitchkit.distributed import World

Item = TypeVar("Item")


def progress(items: Iterable[Item], world: World, what: str, *, unit: str, total: int | None = None) -> tqdm[Item]:
    """A bar around `items`, for loops in which a person waits.

    Args:
        items: What is gone through.
        world: This process among all; only the primary shows a bar, and only where it can be seen.
        what: What is being done.
        unit: What one item is.
        total: Number of items, where `items` does not know it.
    """
    hidden = None if world.is_primary else True  # None: hidden unless on a terminal
    return tqdm(items, desc=what, unit=unit, total=total, leave=False, disable=hidden)

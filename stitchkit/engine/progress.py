"""Progress bars: on the primary rank, on a terminal, gone when done."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

from stitchkit.distributed import World

Item = TypeVar("Item")


def progress(items: Iterable[Item], world: World, what: str, *, unit: str, total: int | None = None) -> tqdm[Item]:
    """A progress bar around `items`, only on the primary rank.

    Args:
        items: The items to iterate over.
        world: This process among all.
        what: Label in front of the bar.
        unit: Name of one item.
        total: Number of items, if `items` has no length.
    """
    hidden = None if world.is_primary else True  # with None, tqdm shows the bar only on a terminal
    return tqdm(items, desc=what, unit=unit, total=total, leave=False, disable=hidden)

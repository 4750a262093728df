"""Progress bars: on the primary rank, on a terminal, gone when done."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

from stitchkit.distributed import World

Item = TypeVar("Item")


def progress(items: Iterable[Item], world: World, what: str, *, unit: str, total: int | None = None) -> tqdm[Item]:
    """A bar around `items`, named `what`, only on the primary rank; they have a length, or a `total`."""
    hidden = None if world.is_primary else True  # with None, tqdm shows the bar only on a terminal
    return tqdm(items, desc=what, unit=unit, total=total, leave=False, disable=hidden)

"""Compositions: fragments one after the other, on the way from a start to an end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from stitchkit.routes.stitch import ARROW
from stitchnet.fragments import Fragment


@dataclass(eq=False)
class Composition:
    """Fragments one after the other, from a start to an end or on the way there.

    Args:
        fragment: The last one.
        score: Product of the scores of all joints.
        own_score: Score of the joint before the last one; 1 for a start.
        parent: What comes before; None for a start.
    """

    fragment: Fragment
    score: float = 1.0
    own_score: float = 1.0
    parent: Composition | None = None

    @cached_property
    def path(self) -> tuple[Composition, ...]:
        """All compositions on the way, from the start on."""
        return (*(self.parent.path if self.parent else ()), self)

    @property
    def fragments(self) -> tuple[Fragment, ...]:
        """The fragments in the order they run."""
        return tuple(step.fragment for step in self.path)

    @property
    def is_uncut(self) -> bool:
        """Whether it is the beginning of a network, without a joint."""
        indices = [(fragment.network, fragment.index) for fragment in self.fragments]
        return indices == [(self.fragment.network, index) for index in range(len(indices))]

    @property
    def name(self) -> str:
        """`network[first:stop] > network[first:stop] > ...`, one slice for fragments that follow each other."""
        return ARROW.join(f"{network}[{first}:{last + 1}]" for network, first, last in _slices(self.fragments))


def uncut(fragments: Sequence[Fragment]) -> list[Composition]:
    """Networks as they are, as compositions.

    Args:
        fragments: All fragments of each, in the order they run.
    """
    whole: list[Composition] = []
    last: Composition | None = None
    for fragment in fragments:
        last = Composition(fragment, parent=None if fragment.is_start else last)
        whole += [last] if fragment.is_end else []
    return whole


def _slices(path: Sequence[Fragment]) -> list[tuple[str, int, int]]:
    found: list[tuple[str, int, int]] = []
    for fragment in path:
        if found and found[-1][0] == fragment.network and found[-1][2] + 1 == fragment.index:
            found[-1] = (fragment.network, found[-1][1], fragment.index)
        else:
            found.append((fragment.network, fragment.index, fragment.index))
    return found

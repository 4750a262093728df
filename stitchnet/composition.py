"""Compositions: sequences of fragments from a start towards an end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from stitchkit.routes.stitch import ARROW
from stitchnet.fragments import Fragment


@dataclass(eq=False)
class Composition:
    """A sequence of fragments, from a start to an end or on the way there.

    Args:
        score: Product of the scores of all joints.
        own_score: Score of the joint before the last fragment; 1 for a start.
        parent: The composition without the last fragment; None for a start.
    """

    fragment: Fragment
    score: float = 1.0
    own_score: float = 1.0
    parent: Composition | None = None

    @cached_property
    def path(self) -> tuple[Composition, ...]:
        """All compositions on the way, from the start to this one."""
        return (*(self.parent.path if self.parent else ()), self)

    @property
    def fragments(self) -> tuple[Fragment, ...]:
        """The fragments in the order in which they run."""
        return tuple(step.fragment for step in self.path)

    @property
    def is_uncut(self) -> bool:
        """Whether it is the beginning of a network, without a joint."""
        indices = [(fragment.network, fragment.index) for fragment in self.fragments]
        return indices == [(self.fragment.network, index) for index in range(len(indices))]

    @property
    def name(self) -> str:
        """`network[first:stop] > network[first:stop] > ...`, one slice for fragments that follow each other."""
        slices: list[tuple[str, int, int]] = []
        for fragment in self.fragments:
            network, first, stop = slices[-1] if slices else ("", 0, -1)
            if (network, stop) == (fragment.network, fragment.index):
                slices[-1] = network, first, stop + 1
            else:
                slices.append((fragment.network, fragment.index, fragment.index + 1))
        return ARROW.join(f"{network}[{first}:{stop}]" for network, first, stop in slices)


def uncut(fragments: Sequence[Fragment]) -> list[Composition]:
    """The uncut networks, as compositions, given all fragments of each in the order in which they run."""
    whole: list[Composition] = []
    last: Composition | None = None
    for fragment in fragments:
        last = Composition(fragment, parent=None if fragment.is_start else last)
        if fragment.is_end:
            whole.append(last)
    return whole

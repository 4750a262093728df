"""A stitch: an immutable route through the blocks of one or more anchors."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from stitchkit.errors import InputError

ARROW = " > "
LABEL = re.compile(r"[A-Za-z0-9_.#-]+")  # no space, bracket or arrow, so that route names can be parsed
_JOINT = re.compile(rf"({LABEL.pattern})\[(\d{{1,9}})\]{ARROW}({LABEL.pattern})\[(\d{{1,9}})\]")
_SEGMENT = re.compile(rf"(?P<anchor>{LABEL.pattern})\[(?P<start>\d{{1,9}}):(?P<stop>\d{{1,9}})\]")


@dataclass(frozen=True)
class Segment:
    """Consecutive blocks of one anchor, counted over all its stages.

    Args:
        anchor: Label of the anchor.
        start: First block that runs.
        stop: The block after the segment, as in a Python slice.
    """

    anchor: str
    start: int
    stop: int

    def __post_init__(self) -> None:
        if not LABEL.fullmatch(self.anchor):
            raise InputError(f"anchor label '{self.anchor}' may have only letters, digits and _ . # -; choose another")
        if not 0 <= self.start < self.stop:
            raise InputError(f"segment {self} runs no block; its start must be at least 0 and less than its stop")

    def __str__(self) -> str:
        return f"{self.anchor}[{self.start}:{self.stop}]"


@dataclass(frozen=True)
class Joint:
    """The place where a route leaves one anchor and enters the next.

    Args:
        front: Label of the anchor that is left.
        front_block: The last of its blocks to run.
        end: Label of the anchor that is entered.
        end_block: The first of its blocks to run.
    """

    front: str
    front_block: int
    end: str
    end_block: int

    @classmethod
    def parse(cls, text: str) -> Joint:
        """The joint that is written so, such as `tiny[5] > small[6]`."""
        match = _JOINT.fullmatch(text)
        if match is None:
            raise InputError(f"'{text}' is not a joint; write two blocks, as in 'tiny[5]{ARROW}small[6]'")
        return cls(match[1], int(match[2]), match[3], int(match[4]))

    def __str__(self) -> str:
        return f"{self.front}[{self.front_block}]{ARROW}{self.end}[{self.end_block}]"


@dataclass(frozen=True)
class Step:
    """One step of a route: a reference, without weights, to the module that runs.

    Args:
        kind: `stem`, `block`, `layer` (the stitching layer of a joint), `head`, or `bare head`, the head without the
            final normalisation; or `level`, which takes features for a dense head and leaves them to the next step.
        anchor: Label of the anchor whose features it takes.
        index: The place of these features: 0 is the input of the first block, `j` the output of block `j - 1`. A stem
            takes images.
        joint: The joint of a layer; of a level, the one into the last anchor, if it is taken in another.
        adapted: Whether updates of the anchors' weights are on, as on stitched routes of a network that has them.
        level: Of a level, the block of the last anchor right before it.
    """

    kind: Literal["stem", "block", "layer", "head", "bare head", "level"]
    anchor: str
    index: int = 0
    joint: Joint | None = None
    adapted: bool = False
    level: int | None = None


@dataclass(frozen=True)
class Stitch:
    """A route: the stem of the first anchor, the blocks of every segment, the head of the last anchor.

    An uncut anchor is a stitch of one segment. A stitch holds no weights; its name reads
    `tiny[0:6] > small[6:12]` and `Stitch.parse` reads it back.

    Args:
        segments: The segments in the order they run.
    """

    segments: tuple[Segment, ...]

    def __post_init__(self) -> None:
        if not self.segments:
            raise InputError("a stitch needs at least one segment, such as 'tiny[0:12]'")

    @classmethod
    def parse(cls, name: str) -> Stitch:
        """The stitch with this name."""
        # Every part must match as a whole: a name that is nearly one of ours comes from a damaged or a foreign ledger.
        matches = [_SEGMENT.fullmatch(part) for part in name.split(ARROW)]
        segments = tuple(Segment(m["anchor"], int(m["start"]), int(m["stop"])) for m in matches if m)
        if len(segments) != len(matches):
            raise InputError(f"'{name}' is not a stitch; write segments as 'tiny[0:6]{ARROW}small[6:12]'")
        return cls(segments)

    @property
    def name(self) -> str:
        """The readable name, which `parse` reads back."""
        return ARROW.join(map(str, self.segments))

    @property
    def joints(self) -> tuple[Joint, ...]:
        """The joints on the way; none for an uncut anchor."""
        return tuple(Joint(a.anchor, a.stop - 1, b.anchor, b.start) for a, b in pairwise(self.segments))

    def steps(self, *, stitched_final_norm: bool = True, adapted: bool = False) -> Iterator[Step]:
        """The steps in the order they run: a stem, blocks with a layer at each joint, a head.

        Args:
            stitched_final_norm: Whether stitched routes apply the final normalisation; uncut anchors always do.
            adapted: Whether stitched routes run with updates of the anchors' weights; uncut anchors never do.
        """
        adapted = adapted and not self.is_anchor
        yield Step("stem", self.segments[0].anchor, adapted=adapted)
        for segment, joint in zip(self.segments, (None, *self.joints), strict=True):
            if joint is not None:
                yield Step("layer", joint.front, joint.front_block + 1, joint, adapted)
            for block in range(segment.start, segment.stop):
                yield Step("block", segment.anchor, block, adapted=adapted)
        last = self.segments[-1]
        # The released DeiT code skips the final normalisation on stitched routes; its weights were trained that way.
        yield Step("head" if self.is_anchor or stitched_final_norm else "bare head", last.anchor, last.stop)

    @property
    def is_anchor(self) -> bool:
        """Whether the route stays in one anchor."""
        return len(self.segments) == 1

    @property
    def end(self) -> str:
        """The label of the route's last anchor, whose features it gives."""
        return self.segments[-1].anchor

    def __str__(self) -> str:
        return self.name

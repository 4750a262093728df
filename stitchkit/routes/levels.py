"""Levels: the depths of a route where dense prediction takes its features."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from stitchkit.errors import InputError
from stitchkit.routes.rules import Shape, blocks_of
from stitchkit.routes.stitch import Joint, Step, Stitch
from stitchkit.routes.two_way import every_cut

_QUARTERS = 4
"""Levels of an anchor of one stage: the ends of its quarters."""


@dataclass(frozen=True)
class Levels:
    """The block of each anchor right before every level.

    Those of the last anchor are chosen. A level of another anchor lies at the same relative height, at the end of the
    blocks that a route of `TwoWay` may exchange for those around the level. Such a route therefore has each level
    exactly once; a route of a rule that repeats or skips blocks takes it where it runs last, or from what enters the
    blocks behind it.

    Args:
        blocks: The blocks of each anchor, counted over all stages, by its label.
        joints: For each anchor but the last, the joints that lead from its levels into the last anchor.

    Source: Stitched ViTs are Flexible Vision Backbones, and its released code for dense prediction; stages, and depths
        that are no multiples of each other, are ours.
    """

    blocks: Mapping[str, tuple[int, ...]]
    joints: Mapping[str, tuple[Joint, ...]]

    @classmethod
    def of(cls, anchors: Sequence[Shape], blocks: Sequence[int] | None = None) -> Levels:
        """The levels of anchors, from cheap to costly.

        Args:
            blocks: Those of the last anchor; by default the last one of each stage, or of each quarter of one stage.

        Raises:
            InputError: If there are no such blocks, or the anchors have other numbers of stages.
        """
        *others, last = anchors
        chosen = default_blocks(last.depths) if blocks is None else tuple(blocks)
        _check(chosen, last)
        blocks_by_label, joints = {}, {}
        for anchor in others:
            if len(anchor.depths) != len(last.depths):
                raise InputError(
                    f"anchors with {len(anchor.depths)} and {len(last.depths)} stages have no levels in common; the "
                    f"blocks are: {blocks_of(anchors)}; choose anchors with equally many stages"
                )
            cuts = every_cut(anchor, last, range(len(last.depths)))
            ends = [next(cut for cut in cuts if cut.end > block) for block in chosen]
            blocks_by_label[anchor.label] = tuple(cut.front for cut in ends)
            joints[anchor.label] = tuple(Joint(anchor.label, cut.front, last.label, cut.end) for cut in ends)
        return cls({**blocks_by_label, last.label: chosen}, joints)

    def steps(self, stitch: Stitch, *, adapted: bool = False) -> Iterator[Step]:
        """The steps of a route up to its last level; each level comes right after the step whose features it takes."""
        # By the number of a segment and a place: `j` is the output of block `j - 1`, or what enters first block `j`.
        waiting: dict[tuple[int, int], list[int]] = {}
        for level in range(len(self.chosen)):
            waiting.setdefault(self._place(stitch, level), []).append(level)
        segment = 0
        for step in stitch.steps(adapted=adapted):
            if not waiting:
                return
            yield step
            anchor, index = step.anchor, step.index + (step.kind == "block")
            if step.joint is not None:
                segment, anchor, index = segment + 1, step.joint.end, step.joint.end_block
            for number in waiting.pop((segment, index), ()):
                joint = self.joints[anchor][number] if anchor in self.joints else None
                yield Step("level", anchor, index, joint, step.adapted, self.chosen[number])

    def without(self, known: Container[Joint]) -> Iterator[Joint]:
        """From the features of an anchor at each level to those of the last one, if no known joint leads there.

        Such a joint ends before `end_block` runs, which may be the head.
        """
        for label, joints in self.joints.items():
            for block, target, joint in zip(self.blocks[label], self.chosen, joints, strict=True):
                if joint not in known:
                    yield Joint(label, block, joint.end, target + 1)

    @property
    def chosen(self) -> tuple[int, ...]:
        """The blocks of the last anchor."""
        return [*self.blocks.values()][-1]

    def _place(self, stitch: Stitch, level: int) -> tuple[int, int]:
        """The segment and the place of a level."""
        ran, beyond = [], []
        for number, segment in enumerate(stitch.segments):
            block = self.blocks[segment.anchor][level]
            if segment.start <= block < segment.stop:
                ran.append((number, block + 1))
            elif block < segment.start:
                beyond.append((number, segment.start))
        number, index = ran[-1] if ran else beyond[0]  # the last segment reaches the end of its anchor
        anchor = stitch.segments[number].anchor
        if anchor in self.joints and self.joints[anchor][level] in stitch.joints[number : number + 1]:
            return number + 1, stitch.segments[number + 1].start  # the route itself passes the layer of the level
        return number, index


def default_blocks(depths: Sequence[int]) -> tuple[int, ...]:
    """The last block of each stage, counted over all; of a single stage, of each of its quarters."""
    if len(depths) > 1:
        return tuple(end - 1 for end in accumulate(depths))
    count = min(_QUARTERS, depths[0])
    return tuple(-(-(number + 1) * depths[0] // count) - 1 for number in range(count))


def _check(blocks: Sequence[int], anchor: Shape) -> None:
    depth = sum(anchor.depths)
    if not blocks or list(blocks) != sorted({*blocks}) or blocks[0] < 0 or blocks[-1] >= depth:
        raise InputError(
            f"levels are {list(blocks)}; give blocks of '{anchor.label}' in ascending order, from 0 to {depth - 1}, "
            f"such as {list(default_blocks(anchor.depths))}"
        )

"""Rules: where anchors may be joined, and which joints share a stitching layer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import NamedTuple, Protocol

from stitchkit.errors import InputError
from stitchkit.routes.pairs import BlockPair, paired, unpaired
from stitchkit.routes.stitch import Joint, Segment, Stitch

LayerPath = tuple[int, ...]
"""The place of a stitching layer in the published key names.

(pair of anchors, layer) for anchors of one stage, (index among the stitched stages, pair, layer) for others.
"""


class Shape(Protocol):
    """The part of an anchor that a rule sees: no weights, so that a space is built in milliseconds."""

    @property
    def label(self) -> str:
        """Its name in stitches."""

    @property
    def depths(self) -> tuple[int, ...]:
        """Blocks per stage."""

    @property
    def stitched_stages(self) -> tuple[int, ...]:
        """The stages at which its family is stitched by default."""


class Plan(NamedTuple):
    """The stitches that follow the anchors, in the published order, and the layer of every joint."""

    stitches: tuple[Stitch, ...]
    layers: dict[Joint, LayerPath]


class Rule(Protocol):
    """A rule turns the depths of the anchors into a plan; it is a pure function of them."""

    def plan(self, anchors: Sequence[Shape]) -> Plan:
        """Stitches and layers for `anchors`, from cheap to costly."""


@dataclass(frozen=True)
class PairedWindow:
    """A window slides over anchors of equal depth and joins every pair of blocks inside it.

    Args:
        kernel_size: Blocks in a window.
        stride: Blocks between the starts of neighbouring windows.
        nearest: Join only neighbouring anchors; otherwise every pair of anchors, with routes through three or more.

    Raises:
        InputError: If kernel size or stride is below 1.

    Source: SN-Net, sections 3.2 and 3.3.
    """

    kernel_size: int = 2
    stride: int = 1
    nearest: bool = True

    def __post_init__(self) -> None:
        _check_window(self.kernel_size, self.stride)

    def plan(self, anchors: Sequence[Shape]) -> Plan:
        """Stitches and layers for `anchors`, which must have one stage of the same depth each.

        Raises:
            InputError: If depths differ or the window is larger than the depth.
        """
        depth = self._common_depth(anchors)
        window = list(paired(depth, kernel_size=self.kernel_size, stride=self.stride))
        # Only from a cheaper anchor into a costlier one: the paper's fast-to-slow direction.
        couples = [c for c in combinations(range(len(anchors)), 2) if not self.nearest or c[1] - c[0] == 1]
        layers: dict[Joint, LayerPath] = {}
        for number, (front, end) in enumerate(couples):
            for pair in window:
                joint = Joint(anchors[front].label, pair.front, anchors[end].label, pair.end)
                layers[joint] = (number, pair.layer)
        # Layers are numbered by pairs of anchors, and routes through three anchors use those of their pairs, so a
        # longer route needs no further weights.
        chains: Iterable[tuple[int, ...]] = couples
        if not self.nearest:
            chains = [c for size in range(2, len(anchors) + 1) for c in combinations(range(len(anchors)), size)]
        stitches = [
            _stitch([anchors[index].label for index in chain], pairs, depth)
            for chain in chains
            for pairs in _chained(window, len(chain) - 1)
        ]
        return Plan(tuple(stitches), layers)

    def _common_depth(self, anchors: Sequence[Shape]) -> int:
        depths = {anchor.depths for anchor in anchors}
        if len(depths) > 1 or any(len(stages) > 1 for stages in depths):
            raise InputError(
                f"a paired window needs anchors of one stage and equal depth, but the blocks are: {_blocks(anchors)}; "
                "choose anchors of the same depth"
            )
        (depth,) = anchors[0].depths
        if self.kernel_size > depth:
            raise InputError(
                f"stitch_kernel_size is {self.kernel_size}, more than the {depth} blocks of an anchor; "
                f"choose 1 to {depth}"
            )
        return depth


@dataclass(frozen=True)
class StageWise:
    """Neighbouring anchors are joined inside their stages: by a window if depths are equal, else unpaired.

    Stitches only skip ahead: they enter the stage at a later block than the one they leave.

    Args:
        stages: The stages that take part, ascending.
        kernel_size: Blocks in a window; a larger window than a stage covers the stage.
        stride: Blocks between the starts of neighbouring windows.

    Raises:
        InputError: If kernel size or stride is below 1, or the stages do not ascend from 0.

    Source: SN-Net, section 3.3, and the released code for Swin, ResNet and LeViT.
    """

    stages: tuple[int, ...]
    kernel_size: int = 2
    stride: int = 1

    def __post_init__(self) -> None:
        _check_window(self.kernel_size, self.stride)
        if not self.stages or list(self.stages) != sorted(set(self.stages)) or self.stages[0] < 0:
            raise InputError(f"stages is {list(self.stages)}; list the stages to stitch in order, such as [0, 1, 2]")

    def plan(self, anchors: Sequence[Shape]) -> Plan:
        """Stitches and layers for `anchors`: stage by stage, and pair by pair within each.

        Raises:
            InputError: If an anchor lacks one of the stages, or has nothing to join in one.
        """
        self._check_stages(anchors)
        layers: dict[Joint, LayerPath] = {}
        stitches = []
        # Stage outside, pair inside: the order of the published `cfg_id`. Released keys count only the stitched stages,
        # as `number` does.
        for number, stage in enumerate(self.stages):
            for couple, (front, end) in enumerate(pairwise(anchors)):
                leave, enter = (sum(anchor.depths[:stage]) for anchor in (front, end))
                pairs = list(self._pairs(front.depths[stage], end.depths[stage]))
                if not pairs:
                    raise self._nothing_to_join(stage, front, end)
                for i, j, layer in pairs:
                    # A rule counts blocks within the stage, a route over all stages.
                    pair = BlockPair(leave + i, enter + j, layer)
                    layers[Joint(front.label, pair.front, end.label, pair.end)] = (number, couple, layer)
                    stitches.append(_stitch([front.label, end.label], [pair], sum(end.depths)))
        return Plan(tuple(stitches), layers)

    def _nothing_to_join(self, stage: int, front: Shape, end: Shape) -> InputError:
        return InputError(
            f"nothing can be joined in stage {stage} of {_blocks((front, end))} with stitch_kernel_size "
            f"{self.kernel_size}: a stitch enters at a later block than the one it leaves, so a stage and a window "
            "need two blocks, and an end needs at least as many as its front; leave the stage out of 'stages', or "
            "choose other anchors"
        )

    def _pairs(self, front_depth: int, end_depth: int) -> Iterator[BlockPair]:
        # A route that entered at the same or an earlier block would repeat work of the front. The published spaces of
        # several stages leave such routes out, unlike those of one stage.
        if front_depth == end_depth:
            return paired(front_depth, kernel_size=self.kernel_size, stride=self.stride, ahead=True)
        return unpaired(front_depth, end_depth)

    def _check_stages(self, anchors: Sequence[Shape]) -> None:
        common = min(len(anchor.depths) for anchor in anchors)
        if self.stages[-1] >= common:
            raise InputError(
                f"stages is {list(self.stages)}, but the anchors have the stages 0 to {common - 1} in common; "
                f"the blocks are: {_blocks(anchors)}"
            )


@dataclass(frozen=True)
class SlidingWindow:
    """The rule of a configuration: `PairedWindow` for anchors of one stage, `StageWise` for others.

    Args:
        kernel_size: Blocks in a window.
        stride: Blocks between the starts of neighbouring windows.
        nearest: Join only neighbouring anchors.
        stages: The stages to stitch; by default those of the anchors' families.

    Raises:
        InputError: If a value is invalid.
    """

    kernel_size: int = 2
    stride: int = 1
    nearest: bool = True
    stages: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        # The anchors decide which rule applies; bad values are refused before they are built or downloaded.
        _check_window(self.kernel_size, self.stride)
        if self.stages is not None:
            self._stage_wise(self.stages)

    def plan(self, anchors: Sequence[Shape]) -> Plan:
        """Stitches and layers for `anchors`, from cheap to costly.

        Raises:
            InputError: If the rule does not fit the anchors.
        """
        if self.stages is None and all(len(anchor.depths) == 1 for anchor in anchors):
            return PairedWindow(self.kernel_size, self.stride, self.nearest).plan(anchors)
        if not self.nearest:
            raise InputError(
                "nearest_stitching is false, which is defined only for anchors of one stage; leave it out for "
                f"{_blocks(anchors)}"
            )
        stages = _usual_stages(anchors) if self.stages is None else self.stages
        return self._stage_wise(stages).plan(anchors)

    def _stage_wise(self, stages: tuple[int, ...]) -> StageWise:
        return StageWise(stages, self.kernel_size, self.stride)


def _usual_stages(anchors: Sequence[Shape]) -> tuple[int, ...]:
    """The stages at which all of the anchors' families are stitched; Swin's last is left out, for example."""
    usual = set(anchors[0].stitched_stages).intersection(*(anchor.stitched_stages for anchor in anchors))
    if not usual:
        listed = ", ".join(f"{anchor.label} {list(anchor.stitched_stages)}" for anchor in anchors)
        raise InputError(f"the anchors are usually stitched at different stages: {listed}; name some in 'stages'")
    return tuple(sorted(usual))


def _check_window(kernel_size: int, stride: int) -> None:
    for key, value in (("stitch_kernel_size", kernel_size), ("stitch_stride", stride)):
        if value < 1:
            raise InputError(f"{key} is {value}; it must be at least 1 block")


def _blocks(anchors: Sequence[Shape]) -> str:
    return ", ".join(f"{anchor.label} {'+'.join(map(str, anchor.depths))}" for anchor in anchors)


def _chained(window: Sequence[BlockPair], count: int, enter: int = 0) -> Iterator[tuple[BlockPair, ...]]:
    """All chains of `count` joints, each of which leaves at or after the block where the route entered."""
    # If it left earlier, the anchor in the middle would run no block: its segment would end before it begins.
    if count == 0:
        yield ()
        return
    for pair in window:
        if pair.front >= enter:
            for rest in _chained(window, count - 1, pair.end):
                yield (pair, *rest)


def _stitch(labels: Sequence[str], pairs: Sequence[BlockPair], depth: int) -> Stitch:
    starts = [0, *(pair.end for pair in pairs)]
    stops = [*(pair.front + 1 for pair in pairs), depth]
    return Stitch(tuple(map(Segment, labels, starts, stops)))

"""The plan of an SN-Net that is given by its anchors alone: their order, the rule and the stages."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, cast

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from stitchkit.display import counted
from stitchkit.errors import InputError
from stitchkit.model.anchor_sources import AnchorSource, make_anchor
from stitchkit.model.snnet import SNNet
from stitchkit.networks.anchor import Anchor
from stitchkit.networks.meta import without_values
from stitchkit.networks.mode import evaluating, unfused_attention
from stitchkit.routes import Joint, Proportional, SlidingWindow, StitchSpace
from stitchkit.routes.rules import Shape, blocks_of, stages_to_stitch
from stitchkit.settings.stitch_config import AnchorSpec, StitchConfig
from stitchkit.settings.stitch_recipe import RECIPE

Rule = SlidingWindow | Proportional
WINDOW, PROPORTIONAL = SlidingWindow(), Proportional()


@dataclass(frozen=True)
class Plan:
    """How anchors are stitched, chosen from their structure.

    Args:
        sources: The anchors from cheap to costly, by their names in stitches.
        rule: Where they are joined.
        lines: The plan in words.
    """

    sources: Mapping[str, AnchorSource]
    rule: Rule
    lines: tuple[str, ...]

    @property
    def config(self) -> StitchConfig:
        """The plan as a configuration, if all anchors are specifications: networks have no place in a file."""
        return StitchConfig(
            anchors=tuple(cast(AnchorSpec, source) for source in self.sources.values()),
            source="Chosen from the structure of the anchors.",
            rule=_name_of(self.rule),
            stages=self.rule.stages,
            recipe=dict(RECIPE),
        )


def plan_anchors(sources: Sequence[AnchorSource], **overrides: Any) -> Plan:
    """The plan of some anchors.

    Args:
        sources: Specifications and networks, in any order.
        overrides: Arguments of `timm.create_model` for all specifications.
    """
    if len(sources) < 2:
        raise InputError(f"stitching needs at least two anchors, but got {len(sources) or 'none'}; add another")
    for number, source in enumerate(sources):
        if any(source is other or (isinstance(source, AnchorSpec) and source == other) for other in sources[:number]):
            raise InputError(f"anchor '{_label(source)}' is given twice; name each once")
    anchors = []
    for source in sources:  # those of specifications without weights
        with without_values() if isinstance(source, AnchorSpec) else nullcontext():
            anchors.append(make_anchor(source, _label(source), pretrained=False, checkpoints=False, **overrides))
    costs = [_cost(anchor) for anchor in anchors]
    order = sorted(range(len(sources)), key=costs.__getitem__)
    anchors, ordered = [anchors[number] for number in order], [sources[number] for number in order]
    names = [*map(_label, ordered)]
    counts = [names[: number + 1].count(name) for number, name in enumerate(names)]
    labels = [name if count == 1 else f"{name}_{count}" for name, count in zip(names, counts, strict=True)]
    for anchor, label in zip(anchors, labels, strict=True):
        anchor.label = label
    has_networks = any(isinstance(source, nn.Module) for source in sources)
    rule, refused = choose_rule(anchors, lambda space: _assembled(anchors, space), has_file=not has_networks)
    model = _assembled(anchors, StitchSpace.build(anchors, rule))
    named = {
        label: replace(source, label=label) if isinstance(source, AnchorSpec) else source
        for label, source in zip(labels, ordered, strict=True)
    }
    lines = (*_lines(model, rule, reordered=order != sorted(order)), *refused)
    return Plan(named, rule, lines)


def choose_rule(
    anchors: Sequence[Shape], build: Callable[[StitchSpace], object], *, has_file: bool = True
) -> tuple[Rule, list[str]]:
    """The rule and the stages for anchors from cheap to costly, and in words what was left out, with the reason.

    Windows, the published rule, wherever they fit: not for plain networks of unequal depth, nor if a stage of the front
    is deeper than that of the end, or joints of different tensors would share a stitching layer.

    Args:
        build: Raises an `InputError` if the joints of a space cannot be built.
        has_file: Whether a configuration can hold the anchors.
    """

    def fault(rule: Rule) -> str:
        try:
            build(StitchSpace.build(anchors, rule))
        except InputError as error:
            return str(error)
        return ""

    single = [len(anchor.depths) == 1 for anchor in anchors]
    if all(single):
        # The window needs equal depths, and one layout for all joints that share a stitching layer.
        no_window = fault(WINDOW)
        rule: Rule = PROPORTIONAL if no_window else WINDOW
        if why := fault(rule):
            raise InputError(why)
        return rule, _without_windows(no_window)
    if any(single):
        way = (
            ', or write a configuration with "rule": "proportional", "stages": [0], which joins the first stage of one '
            "to the other"
        )
        raise InputError(
            f"anchors with one stage and with several have no stages in common; the blocks are: {blocks_of(anchors)}; "
            f"choose anchors of one kind{way if has_file else ''}"
        )
    common = stages_to_stitch(anchors, None)
    windows, shares = (
        {stage: fault(replace(rule, stages=(stage,))) for stage in common} for rule in (WINDOW, PROPORTIONAL)
    )
    # A stage of one block each has no place for a window, and is not worth another rule for all stages.
    large = [stage for stage in common if any(anchor.depths[stage] > 1 for anchor in anchors)]
    beyond = [stage for stage in large if windows[stage] and not shares[stage]]
    is_beyond = bool(beyond) or all(windows.values())
    rule, faults = (PROPORTIONAL, shares) if is_beyond else (WINDOW, windows)
    no_window = windows[(beyond or common)[0]] if is_beyond else ""
    stages = tuple(stage for stage, why in faults.items() if not why)
    if not stages:
        raise InputError("; ".join(dict.fromkeys(faults.values())))
    usual = "it is not among the stages where all anchors are usually stitched"
    left = {stage: usual for stage in range(max(len(anchor.depths) for anchor in anchors)) if stage not in common}
    left |= {stage: why for stage, why in faults.items() if why}
    lines = [f"stage {stage} is left out: {left[stage]}" for stage in sorted(left)]
    return replace(rule, stages=stages), _without_windows(no_window) + lines


def _without_windows(fault: str) -> list[str]:
    """The line that says why windows do not fit, without what their error advises."""
    why = fault.partition("; ")[0].replace("windows join", "they join")
    return [f"no windows: {why}"] if fault else []


def _label(source: AnchorSource) -> str:
    return source.label if isinstance(source, AnchorSpec) else type(source).__name__


def _cost(anchor: Anchor) -> int:
    """Floating-point operations for one image, in torch's count, which orders anchors as well as any."""
    counter = FlopCounterMode(display=False)
    # With gradients: without them, the counter fails on a module whose input is a parameter, such as a learned query.
    with evaluating(anchor.model), unfused_attention(anchor.model), torch.enable_grad(), counter:
        anchor.model(anchor.blank_image())
    return int(counter.get_total_flops())


def _assembled(anchors: Sequence[Anchor], space: StitchSpace) -> SNNet:
    with without_values():  # only the stitching layers are created here
        return SNNet(anchors, space)


def _name_of(rule: Rule) -> str:
    return "window" if isinstance(rule, SlidingWindow) else "proportional"


def _lines(model: SNNet, rule: Rule, *, reordered: bool) -> Iterator[str]:
    """The anchors, the rule, and where each pair of anchors is joined."""
    anchors, kind = model.views, _name_of(rule)
    yield f"blocks of the anchors, from cheap to costly: {blocks_of([*anchors.values()])}" + (
        "; they were given in another order" if reordered else ""
    )
    yield f"rule: {kind}, {counted(len(model.space), 'stitch')}"
    groups: dict[tuple[str, str, int], list[Joint]] = {}
    for joint in model.space.layers:
        key = joint.front, joint.end, bisect_right([*accumulate(anchors[joint.front].depths)], joint.front_block)
        groups.setdefault(key, []).append(joint)
    for (front, end, stage), joints in groups.items():
        layouts = dict.fromkeys(" to ".join(map(str, model.layer(joint).layouts)) for joint in joints)
        leave, enter = ({getattr(joint, name) for joint in joints} for name in ("front_block", "end_block"))
        yield (
            f"stage {stage}, {front} > {end}: {counted(len(joints), 'joint')} after {_blocks(leave)} and before "
            f"{_blocks(enter)}, {'; '.join(layouts)}"
        )


def _blocks(numbers: set[int]) -> str:
    return f"block {min(numbers)}" if len(numbers) == 1 else f"blocks {min(numbers)} to {max(numbers)}"

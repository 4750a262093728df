"""What a run asks of its network, be it an SN-Net or a plain model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from stitchkit.measure.profile import Cost, Profiler, measure
from stitchkit.model.snnet import SNNet
from stitchkit.routes import Segment, Stitch, StitchSpace


@dataclass(frozen=True)
class RunNetwork:
    """What a run asks of its network; a plain model is a space of one route."""

    space: StitchSpace
    forward: Callable[[torch.Tensor, int], torch.Tensor]  # the output of a route, by its `cfg_id`, for images
    costs: Callable[[Sequence[int]], list[Cost]]  # of each route, for images of a size `(C, H, W)`
    networks: Sequence[nn.Module]  # the models of timm in it
    compiled: Sequence[nn.Module]  # the modules that are compiled
    anchors: Mapping[str, int]  # the `cfg_id` of each uncut anchor, by its label
    parts: Sequence[tuple[str, nn.Module]] = ()  # of a stitch, a head or an anchor, in the order of an optimizer
    level_blocks: Sequence[int] = ()  # whose outputs a dense head takes
    gives_features: bool = False  # whether an evaluation can judge it without classes

    def each(self, cfg_ids: Sequence[int]) -> Callable[[Sequence[torch.Tensor]], Iterator[tuple[int, torch.Tensor]]]:
        """Runs routes one after the other on images in portions `[b, C, H, W]`."""
        return lambda portions: ((cfg_id, torch.cat([self.forward(x, cfg_id) for x in portions])) for cfg_id in cfg_ids)


def run_network(model: nn.Module) -> RunNetwork:
    """What a run asks of this network."""
    if not isinstance(model, SNNet):
        space = StitchSpace({0: Stitch((Segment("model", 0, 1),))}, {}, 1)  # made directly: there is no anchor
        return RunNetwork(space, lambda x, _: model(x), lambda size: [_cost(model, size)], [model], [model], {})
    new = (model.stitch_layers, model.level_layers, model.updates)
    infos = model.backbone.level_infos if model.route_head.is_shared else []
    return RunNetwork(
        model.space,
        model,
        lambda _: [*map(Profiler(model).cost, model.space.ids)],
        networks=[*model.anchors],
        # Each step runs another route, so that a block is compiled once for all. A block of several modules, or with
        # code around one, is assembled for each run; its modules persist.
        compiled=[part for anchor in model.views.values() for part in anchor.block_modules],
        anchors={label: cfg_id for cfg_id, label in enumerate(model.views)},
        parts=[
            *(("stitch", part) for part in new),
            *(("head", part) for part in model.route_head.modules.values()),
            *(("anchor", part) for part in model.anchors),
        ],
        level_blocks=[info.block for info in infos],
        gives_features=True,
    )


def _cost(model: nn.Module, size: Sequence[int]) -> Cost:
    weight = next(model.parameters())
    return measure(model, torch.zeros(1, *size, device=weight.device, dtype=weight.dtype))

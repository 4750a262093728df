"""What ends the routes of a backbone: the classifiers of its anchors, or one dense head for all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from stitchkit.model.backbone import Backbone
from stitchkit.model.heads.head import DenseHead
from stitchkit.model.levels import Level, LevelInfo, levels_along
from stitchkit.model.route_network import DenseRoute, ExtractedRoute, RouteNetwork, exported, folded
from stitchkit.networks.anchor import HeadSlice
from stitchkit.networks.layout import find_layout
from stitchkit.networks.slices import extract
from stitchkit.routes import Step, Stitch

Walk = Callable[[Step, torch.Tensor], Any]
"""Runs a step on the output of the one before it."""
LOGITS, POOLED, TOKENS, DEPTH = "logits", "pooled", "tokens", "depth"
"""The names of outputs in files: the first of networks with classes, of images or pixels; the next of those without
classes; the last of networks for depth.
"""


class RouteHead:
    """The end of all routes of a backbone: the head of the anchor where a stitch ends.

    It gives logits `[B, num_classes]`, or features `[B, C]` without classes. It is no module; the network that has it
    registers its `modules`.

    Attributes:
        modules: Its modules beside those of the backbone, by their names in the network.
        is_shared: Whether all routes end in the same module, uncut anchors among them.
        batches_routes: Whether the outputs of all routes fit the memory together, as in `OnePass`.
    """

    modules: Mapping[str, nn.Module] = {}
    is_shared = False
    batches_routes = True

    def __init__(self, backbone: Backbone):
        self.backbone = backbone

    @property
    def outputs(self) -> int:
        """Number of outputs of an image or at a pixel; 0 for features."""
        return self.backbone.last.num_classes

    def steps(self, stitch: Stitch) -> list[Step]:
        """The steps of a stitch with its end."""
        return self.backbone.steps(stitch)

    def module_of(self, step: Step) -> nn.Module:
        """The module that runs a step."""
        return self.backbone.module_of(step)

    def run(self, walk: Walk, x: torch.Tensor, stitch: Stitch, *, training: bool) -> tuple[Any, Any]:  # noqa: ARG002
        """The output of a stitch for images `[B, C, H, W]`, and what enters its end.

        Args:
            training: Give what losses need beside the output.
        """
        *steps, head = self.steps(stitch)
        for step in steps:
            x = walk(step, x)
        return walk(head, x), x

    def network(self, stitch: Stitch, modules: Mapping[str, nn.Module]) -> ExtractedRoute:
        """The network of a stitch from the modules of its steps, by name."""
        last = modules["head"]
        return RouteNetwork.of(modules, last if isinstance(last, HeadSlice) else self.backbone.views[stitch.end].head)

    def extracted(self, stitch: Stitch) -> ExtractedRoute:
        """The network of a stitch with a copy of its weights."""
        return extract(self.network(stitch, exported(self.module_of, self.steps(stitch))))

    def described(self, stitch: Stitch) -> dict[str, object]:
        """What files say of the output of a stitch; shapes are those of one image."""
        if self.outputs:
            return {"name": LOGITS, "width": self.outputs}
        net, end = self.extracted(stitch).eval(), self.backbone.views[stitch.end]
        assert isinstance(net, RouteNetwork), "it is made here"
        with torch.no_grad():
            tokens = net.forward_features(end.blank_image())
            width = net.forward_head(tokens).shape[1]
        layout = find_layout(tuple(tokens.shape), end.model, end.input_size[1:])
        axes = {"layout": layout.kind, "num_prefix_tokens": layout.num_prefix_tokens} if layout else {}
        return {"name": POOLED, "width": width, TOKENS: {"shape": [*tokens.shape[1:]], **axes}}

    def profiled(self, step: Step) -> nn.Module:
        """The module of a step as it is exported, with one tensor as its input; that of a shared head is images."""
        return folded(self.module_of(step))


class LevelHead(RouteHead):
    """A dense head that takes the levels of all routes, and is trained with them: outputs `[B, num_outputs, h, w]`.

    They are logits or depths in metres, at the resolution of the head; resize them bilinearly to the images.

    Args:
        backbone: One with levels; the heads of its anchors are not used.
        make: Makes the head, given what the levels are.

    Source: Stitched ViTs are Flexible Vision Backbones, section 4.2, and its released code.
    """

    is_shared = True
    batches_routes = False

    def __init__(self, backbone: Backbone, make: Callable[[Sequence[LevelInfo]], DenseHead]):
        super().__init__(backbone)
        self.dense = make(backbone.level_infos)
        self.modules = {"head": self.dense}

    @property
    def outputs(self) -> int:
        """Outputs at a pixel: the number of classes, or 1 for depth."""
        return self.dense.num_outputs

    def steps(self, stitch: Stitch) -> list[Step]:
        """The steps of a stitch up to the last level that the head needs, and the head."""
        needed = {self.backbone.level_infos[number].block for number in self.dense.needed}
        steps = [step for step in self.backbone.level_steps(stitch) if step.level is None or step.level in needed]
        while steps[-1].kind != "level":
            steps.pop()
        return [*steps, Step("head", self.backbone.last.label, sum(self.backbone.last.depths))]

    def module_of(self, step: Step) -> nn.Module:
        """The module that runs a step."""
        return self.dense if step.kind == "head" else super().module_of(step)

    def run(self, walk: Walk, x: torch.Tensor, stitch: Stitch, *, training: bool) -> tuple[Any, list[Level]]:
        """The output, in training a list of it and those of auxiliary heads; and the levels."""
        if not training:
            levels = levels_along(walk, x, self.steps(stitch)[:-1])
            return self.dense(levels), levels
        levels = levels_along(walk, x, self.backbone.level_steps(stitch))
        return [self.dense([levels[number] for number in self.dense.needed]), *self.dense.auxiliary(levels)], levels

    def network(self, stitch: Stitch, modules: Mapping[str, nn.Module]) -> DenseRoute:  # noqa: ARG002
        """A network that ends in the dense head."""
        return DenseRoute(modules)

    def described(self, stitch: Stitch) -> dict[str, object]:
        """The number of `logits` of a pixel, or `depth`, and the shape of their map, smaller than the image."""
        with torch.no_grad():
            shape = self.extracted(stitch).eval()(self.backbone.last.blank_image()).shape
        name = LOGITS if self.dense.min_depth is None else DEPTH
        return {"name": name, "width": self.outputs, "shape": [*shape[1:]]}

    def profiled(self, step: Step) -> nn.Module:
        """As of all routes; the head makes blank levels itself."""
        return _OfImages(self.dense.folded()) if step.kind == "head" else super().profiled(step)


class _OfImages(nn.Module):
    """A dense head on blank levels of the images that enter: a module of one tensor."""

    def __init__(self, head: DenseHead):
        super().__init__()
        self.head = head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        levels = []
        for info in (self.head.levels[number] for number in self.head.needed):
            sides = (-(-side // info.reduction) for side in x.shape[2:])
            prefix = x.new_zeros(len(x), info.num_prefix_tokens, info.channels) if info.num_prefix_tokens else None
            levels.append(Level(x.new_zeros(len(x), info.channels, *sides), prefix))
        output: torch.Tensor = self.head(levels)
        return output

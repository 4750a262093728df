"""The network of one stitch, which stands on its own and has the interface of timm's models."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import count
from typing import Any

import torch
from timm.models import FeatureInfo
from torch import nn

from stitchkit.model.heads.head import DenseHead
from stitchkit.model.layer import AdaptedBlock, StitchLayer
from stitchkit.model.levels import LevelInfo, LevelTap, levels_along
from stitchkit.networks.anchor import HeadSlice
from stitchkit.networks.slices import Slice
from stitchkit.routes import Step


class _Route(nn.Sequential):
    """The steps of one stitch, by name."""

    pretrained_cfg: dict[str, Any]
    """The preparation of images, for `timm.data.resolve_model_data_config`."""
    about: Mapping[str, Any]
    """The description of the file that it was loaded from."""

    def __init__(self, steps: Mapping[str, nn.Module]):
        super().__init__()
        for name, module in steps.items():  # in saved files, stems are `stem.part`
            self.add_module(name, nn.Sequential(OrderedDict(part=module)) if isinstance(module, Slice) else module)


class RouteNetwork(_Route):
    """The steps of one stitch in turn: `stem`, `block0`, ..., `stitch0`, ..., `head`.

    `SNNet.extract` and `load_stitch` make it. Its head is that of the stitch's end anchor, and so are its
    features.
    """

    _ending: HeadSlice

    @classmethod
    def of(cls, steps: Mapping[str, nn.Module], ending: HeadSlice) -> RouteNetwork:
        """The network of some steps, by name.

        Args:
            ending: The last of them, or the slice around it if that is a module of an anchor.
        """
        net = cls(steps)
        net.__dict__["_ending"] = ending  # not as a child: its weights are those of the last step
        return net

    @property
    def num_classes(self) -> int:
        """Number of logits; 0 if the output is the pooled feature."""
        return self._ending.num_classes

    @property
    def num_features(self) -> int:
        """Channels of what `forward_features` gives."""
        return self._ending.num_features

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """The unpooled features of images `[B, C, H, W]`, which enter `forward_head`.

        They are tokens `[B, N, C]`, prefix tokens such as the class token first, or maps `[B, C, H, W]` or
        `[B, H, W, C]`: the output of the last block, after the final normalisation if the anchor where the stitch
        ends has one before its pooling, and if the stitch applies it.
        """
        for step in [*self][:-1]:
            x = step(x)
        return self._head.run_features(x)

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Logits `[B, num_classes]` of what `forward_features` gives, or the pooled feature if there are no classes.

        Args:
            pre_logits: Give the pooled feature `[B, C]` that enters the classifier.
        """
        return self._head.run_head(x, pre_logits=pre_logits)

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the classifier by a new, random one, or remove it with 0 classes."""
        self._ending.replace_classifier(num_classes)
        if all(module is not self._ending for module in self.modules()):
            self.head = self._ending.single_module  # it may be another one now

    @property
    def _head(self) -> HeadSlice:
        if self._ending.training != self.training:
            self._ending.training = self.training
        return self._ending


class RouteFeatures(_Route):
    """The steps of one stitch up to its last level: `stem`, `block0`, ..., `stitch0`, ..., `level0`, ....

    `SNNet.extract` makes it with `features=True`. It takes the place of a network that timm makes with `features_only`:
    `feature_info` has the channels and the reduction of each level.
    """

    def __init__(self, steps: Mapping[str, nn.Module], levels: Sequence[LevelInfo]):
        super().__init__(steps)
        names = [name for name, module in steps.items() if isinstance(module, LevelTap)]
        known = [
            {"num_chs": level.channels, "reduction": level.reduction, "module": name}
            for name, level in zip(names, levels, strict=True)
        ]
        self.feature_info = FeatureInfo(known, out_indices=(*range(len(known)),))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The features of images `[B, C, H, W]` at each level, maps `[B, C, H, W]`."""
        return [level.map for level in levels_along(nn.Module.__call__, x, self)]


class DenseRoute(_Route):
    """The steps of one stitch with a head for dense prediction: `stem`, `block0`, ..., `level0`, ..., `head`.

    `SNNet.extract` and `load_stitch` make it.
    """

    @property
    def num_classes(self) -> int:
        """Outputs at a pixel: the number of classes, or 1 for depth."""
        head = self.get_submodule("head")
        assert isinstance(head, DenseHead)
        return head.num_outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Outputs `[B, num_classes, h, w]` of images `[B, C, H, W]`: logits of classes, or depths in metres.

        They have the resolution of the head; resize them bilinearly to the images.
        """
        *steps, head = self
        output: torch.Tensor = head(levels_along(nn.Module.__call__, x, steps))
        return output


ExtractedRoute = RouteNetwork | DenseRoute
"""The network of a whole route, whatever its head."""


def exported(module_of: Callable[[Step], nn.Module], steps: Iterable[Step]) -> dict[str, nn.Module]:
    """The modules of some steps in an extracted network, by name."""
    done: dict[nn.Module, nn.Module] = {}
    return {name: folded(module_of(step), done) for name, step in named(steps)}


def folded(module: nn.Module, done: dict[nn.Module, nn.Module] | None = None) -> nn.Module:
    """The module of a step as it is exported; one that is `done` already for another step stays one."""
    if isinstance(module, LevelTap):
        twin = copy.copy(module)
        twin._modules = {"layer": module.layer and folded(module.layer, done)}
        return twin
    done = {} if done is None else done
    if isinstance(module, StitchLayer | AdaptedBlock | DenseHead) and module not in done:
        done[module] = module.folded()
    return done.get(module, module)


def named(steps: Iterable[Step]) -> Iterator[tuple[str, Step]]:
    """Steps with their names in an extracted network: `stem`, `block0`, ..., `stitch0`, ..., `level0`, ..., `head`."""
    kinds = {"block": "block{}", "layer": "stitch{}", "level": "level{}"}
    numbered = {kind: map(name.format, count()) for kind, name in kinds.items()}
    for step in steps:
        yield next(numbered[step.kind]) if step.kind in numbered else step.kind.removeprefix("bare "), step

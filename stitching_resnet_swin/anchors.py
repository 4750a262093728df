"""The view of timm's `ResNet`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from timm.models.resnet import ResNet
from torch import nn

from stitchkit.networks.anchor import Anchor, Stage
from stitchkit.networks.layout import Layout


class ResNetAnchor(Anchor):
    """A ResNet in any of timm's variants (D, T, ResNeXt, SE, ECA, RS, blur, ...): stages of maps `[B, C, H, W]`."""

    model: ResNet
    stem_children = ("conv1", "bn1", "act1", "maxpool")
    head_children = ("global_pool", "fc")
    stitched_stages = (1, 2)  # as published: the first and the last stage are left out

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages; positions are rows and columns of a map."""
        _, height, width = self.input_size
        stages = []
        for path, info in zip(self.stage_paths, self.model.feature_info[1:], strict=True):
            positions = (-(-height // info["reduction"]), -(-width // info["reduction"]))  # rounded up
            stages.append(Stage(len(getattr(self.model, path)), Layout("NCHW", info["num_chs"], positions)))
        return tuple(stages)

    @property
    def stem_layout(self) -> Layout:
        """The full layout of the stem's output: maps as large as those of the first stage."""
        return replace(self.stages[0].layout, channels=self.model.feature_info[0]["num_chs"])

    @property
    def input_size(self) -> tuple[int, int, int]:
        """Size of an input image, `(C, H, W)`; that of its weights, since a ResNet takes any."""
        _, height, width = self.pretrained_cfg["input_size"]
        return (self.model.in_chans, height, width)

    @property
    def stage_paths(self) -> Sequence[str]:
        """Paths of timm's stages."""
        return ("layer1", "layer2", "layer3", "layer4")

    @staticmethod
    def run_stem(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """Images `[B, C, H, W]` to maps `[B, C, H, W]` at a quarter of the size."""
        for name in ResNetAnchor.stem_children:
            x = getattr(model, name)(x)
        return x

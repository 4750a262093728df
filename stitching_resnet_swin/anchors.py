"""The view of timm's `ResNet`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from timm.models.resnet import ResNet

from stitchkit.networks.layout import Kind, Layout
from stitchkit.networks.view import View


class ResNetAnchor(View):
    """A ResNet in any of timm's variants (D, T, ResNeXt, SE, ECA, RS, blur, ...): stages of maps `[B, C, H, W]`."""

    model: ResNet
    kind: Kind = "NCHW"
    stem_children = ("conv1", "bn1", "act1", "maxpool")
    head_children = ("global_pool", "fc")
    stitched_stages = (1, 2)  # as published: the first and the last stage are left out

    @property
    def stage_info(self) -> Sequence[Mapping[str, Any]]:
        """timm's figures without the first, which are those of the stem before its pooling."""
        return super().stage_info[1:]

    @property
    def stem_layout(self) -> Layout:
        """The full layout of the stem's output: maps as large as those of the first stage."""
        return replace(self.stages[0].layout, channels=self.model.feature_info[0]["num_chs"])

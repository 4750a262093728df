"""The view of timm's `Levit` and `LevitDistilled`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from timm.models.levit import Levit
from torch import nn

from stitching_levit.published import own_names
from stitchkit.networks.anchor import Anchor, Stage
from stitchkit.networks.layout import Layout


class LevitAnchor(Anchor):
    """A LeViT of any size: stages of tokens `[B, N, C]`, or of maps `[B, C, H, W]` in its convolutional form.

    A block is one attention and its MLP. The two classifiers of a distilled model are averaged in evaluation.
    """

    model: Levit
    stem_children = ("stem",)
    head_children = ("head", "head_dist")
    stitched_stages = (0, 1)  # as published: the last stage is left out
    own_names = staticmethod(own_names)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages; positions are tokens, or rows and columns of a map."""
        return tuple(
            self._stage(len(stage.blocks), width, stage.blocks[0].attn.resolution)
            for stage, width in zip(self.model.stages, self.model.embed_dim, strict=True)
        )

    def _stage(self, depth: int, width: int, grid: tuple[int, int]) -> Stage:
        if self.model.use_conv:
            return Stage(depth, Layout("NCHW", width, tuple(grid)))
        return Stage(depth, Layout("NLC", width, (math.prod(grid),)))

    @property
    def input_size(self) -> tuple[int, int, int]:
        """Size of an input image, `(C, H, W)`."""
        height, width = self.model.stages[0].blocks[0].attn.resolution
        stride = self.model.stem.stride
        return (self.model.in_chans, height * stride, width * stride)

    @property
    def stage_paths(self) -> Sequence[str]:
        """Paths of timm's stages."""
        return [f"stages.{number}" for number in range(len(self.model.stages))]

    @property
    def borders(self) -> tuple[str, str]:
        """Names of the last node of the stem and the first node of the head."""
        return "stem" if self.model.use_conv else "transpose", "mean"

    @staticmethod
    def run_stem(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """Images `[B, C, H, W]` to tokens `[B, N, C]`, or to maps `[B, C, H, W]`."""
        assert isinstance(model, Levit)
        x = model.stem(x)
        return x if model.use_conv else x.flatten(2).transpose(1, 2)

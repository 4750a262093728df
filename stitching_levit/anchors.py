"""The view of timm's `Levit` and `LevitDistilled`."""

from __future__ import annotations

import torch
from timm.models.levit import Levit
from torch import nn

from stitching_levit.published import own_names
from stitchkit.networks.layout import Kind
from stitchkit.networks.view import View


class LevitAnchor(View):
    """A LeViT of any size: stages of tokens `[B, N, C]`, or of maps `[B, C, H, W]` in its convolutional form.

    A block is one attention and its MLP. The two classifiers of a distilled model are averaged in evaluation.
    """

    model: Levit
    stem_children = ("stem",)
    head_children = ("head", "head_dist")
    stitched_stages = (0, 1)  # as published: the last stage is left out
    own_names = staticmethod(own_names)

    @property
    def kind(self) -> Kind:
        """Tokens, or maps in the convolutional form."""
        return "NCHW" if self.model.use_conv else "NLC"

    @property
    def input_size(self) -> tuple[int, int, int]:
        """Size of an input image, `(C, H, W)`."""
        height, width = self.model.stages[0].blocks[0].attn.resolution
        stride = self.model.stem.stride
        return (self.model.in_chans, height * stride, width * stride)

    @property
    def borders(self) -> tuple[str, str]:
        """Names of the last node of the stem and the first node of the head."""
        return "stem" if self.model.use_conv else "transpose", "mean"

    @classmethod
    def run_stem(cls, model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """Images `[B, C, H, W]` to tokens `[B, N, C]`, or to maps `[B, C, H, W]`."""
        assert isinstance(model, Levit)
        x = model.stem(x)
        return x if model.use_conv else x.flatten(2).transpose(1, 2)

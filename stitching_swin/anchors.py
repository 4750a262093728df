"""The view of timm's `SwinTransformer`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from timm.models.swin_transformer import SwinTransformer
from torch import nn

from stitching_swin.published import own_names
from stitchkit.networks.anchor import Anchor, Stage, patched_input_size
from stitchkit.networks.layout import Layout


class SwinAnchor(Anchor):
    """A Swin transformer (V1) of any size, resolution and window: stages of `[B, H, W, C]`."""

    model: SwinTransformer
    stem_children = ("patch_embed",)
    head_children = ("norm", "head")
    final_norm_children = ("norm",)
    stitched_stages = (0, 1, 2)  # as published: the last stage is left out
    own_names = staticmethod(own_names)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages; positions are rows and columns of patches."""
        widths = [info["num_chs"] for info in self.model.feature_info]
        return tuple(
            Stage(len(stage.blocks), Layout("NHWC", width, tuple(stage.output_resolution)))
            for stage, width in zip(self.model.layers, widths, strict=True)
        )

    @property
    def input_size(self) -> tuple[int, int, int]:
        """Size of an input image, `(C, H, W)`."""
        return patched_input_size(self.model.in_chans, self.model.patch_embed)

    @property
    def stage_paths(self) -> Sequence[str]:
        """Paths of timm's stages."""
        return [f"layers.{number}" for number in range(len(self.model.layers))]

    @staticmethod
    def run_stem(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """Images `[B, C, H, W]` to patches `[B, H, W, C]`."""
        assert isinstance(model, SwinTransformer)
        x = model.patch_embed(x)
        return x

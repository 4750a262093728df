"""The table of families: which class of models has which view; all other networks are traced."""

from __future__ import annotations

import importlib

from torch import nn

from stitchkit.networks.anchor import Anchor
from stitchkit.networks.steps import Steps
from stitchkit.networks.traced_anchor import TracedAnchor

VIEWS = {
    "timm.models.vision_transformer.VisionTransformer": "stitching_deit.anchors.VisionTransformerAnchor",
    "timm.models.deit.VisionTransformerDistilled": "stitching_deit.anchors.VisionTransformerAnchor",
    "timm.models.levit.Levit": "stitching_levit.anchors.LevitAnchor",
    "timm.models.levit.LevitDistilled": "stitching_levit.anchors.LevitAnchor",
    "timm.models.resnet.ResNet": "stitching_resnet_swin.anchors.ResNetAnchor",
    "timm.models.swin_transformer.SwinTransformer": "stitching_swin.anchors.SwinAnchor",
}
"""The one place where the core names families: model class -> the view of it."""


def _view_path(model: nn.Module) -> str:
    """The view registered for a model's class; empty if there is none."""
    # The exact class decides: a subclass may run its blocks in another way.
    return VIEWS.get(f"{type(model).__module__}.{type(model).__qualname__}", "")


def has_view(model: nn.Module) -> bool:
    """Whether a view is registered for the model's class."""
    return bool(_view_path(model))


def anchor_of(model: nn.Module, *, label: str, input_size: tuple[int, int, int] | None = None) -> Anchor:
    """A network as an anchor: by the view of its class, or traced if there is none.

    Args:
        label: Its name in stitches.
        input_size: Size of an input image, `(C, H, W)`; by default that of timm's description of the network.

    Raises:
        InputError: If it cannot be traced, or has no place where only one tensor passes.
    """
    if not has_view(model):
        return TracedAnchor(model, label=label, input_size=input_size)
    module, _, name = _view_path(model).rpartition(".")
    anchor: Anchor = getattr(importlib.import_module(module), name)(model, label=label)
    return anchor


def steps_of(model: nn.Module) -> Steps:
    """A network as steps: by the view of its class, or traced by torch.fx if there is none."""
    return anchor_of(model, label="model") if has_view(model) else Steps(model)

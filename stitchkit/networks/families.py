"""The table of families: which class of models has which view; all other networks are traced."""

from __future__ import annotations

import importlib

from torch import nn

from stitchkit.errors import InputError
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


def has_view(model: nn.Module) -> bool:
    """Whether a view is registered for the model's class: a subclass may run its blocks in another way."""
    return _class_of(model) in VIEWS


def _class_of(model: nn.Module) -> str:
    return f"{type(model).__module__}.{type(model).__qualname__}"


def anchor_of(
    model: nn.Module, *, label: str, input_size: tuple[int, int, int] | None = None, num_classes: int | None = None
) -> Anchor:
    """A network as an anchor: by the view of its class, or traced if there is none.

    Args:
        label: Its name in stitches.
        input_size: Size of an input image, `(C, H, W)`; by default that of timm's description of the network.
        num_classes: Number of logits of a network that does not say it; 0 if it gives features.

    Raises:
        InputError: If it cannot be traced, has no two blocks between which only one tensor passes, takes images of
            another size, or has another number of classes.
    """
    anchor: Anchor
    if has_view(model):
        module, _, name = VIEWS[_class_of(model)].rpartition(".")
        anchor = view = getattr(importlib.import_module(module), name)(model, label=label)
        if input_size is not None:
            view.image_sides = input_size[1:]
    else:
        is_told = hasattr(model, "num_classes") or num_classes != 0
        anchor = TracedAnchor(model, label=label, input_size=input_size, num_classes=None if is_told else 0)
    if input_size is not None and anchor.input_size != input_size:
        raise InputError(
            f"anchor '{label}' takes images of {anchor.input_size}, not {input_size}; create it with their size as "
            "img_size"
        )
    if num_classes is not None and anchor.num_classes != num_classes:
        advice = "replace its classifier by torch.nn.Identity() and its num_classes by 0"
        raise InputError(
            f"anchor '{label}' has {anchor.num_classes} classes, not {num_classes}; "
            + ("give it another classifier" if num_classes else advice)
        )
    return anchor


def steps_of(model: nn.Module) -> Steps:
    """A network as steps: by the view of its class, or traced by torch.fx if there is none."""
    return anchor_of(model, label="model") if has_view(model) else Steps(model)

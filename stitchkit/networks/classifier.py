"""The classifier of a network of timm, torchvision or one's own: its name, and another one in its place."""

from __future__ import annotations

from timm.layers import to_2tuple
from torch import nn

from stitchkit.networks.timm_model import as_timm


def classifier_of(model: nn.Module) -> str:
    """Name of the classifier: timm's, of a distilled network the first; or the last linear layer; empty if none.

    Without linear layers, it may be a pointwise convolution to the number of classes that the network says it has.
    """
    if hasattr(model, "pretrained_cfg"):
        return to_2tuple(as_timm(model).pretrained_cfg.get("classifier"))[0] or ""
    classes = getattr(model, "num_classes", None)
    layers = [] if classes == 0 else [*reversed([*model.named_modules()])]
    linear = (name for name, part in layers if isinstance(part, nn.Linear))
    convolutions = ((name, part) for name, part in layers if isinstance(part, nn.Conv2d))
    pointwise = (name for name, part in convolutions if part.kernel_size == (1, 1) and part.out_channels == classes)
    return next(linear, None) or next(pointwise, "")


def classifier_layers(model: nn.Module) -> list[nn.Linear | nn.Conv2d]:
    """The layers that give the logits; a distilled network has two."""
    if hasattr(model, "get_classifier"):
        classifier = as_timm(model).get_classifier()
        heads = classifier if isinstance(classifier, tuple | list) else [classifier]
    else:
        heads = [model.get_submodule(name)] if (name := classifier_of(model)) else []
    parts = (part for head in heads for part in head.modules())
    return [part for part in parts if isinstance(part, nn.Linear | nn.Conv2d)]


def resize_classifier(model: nn.Module, num_classes: int) -> None:
    """Re-initialise the classifier if it has another number of classes; with 0, the network gives its feature."""
    if hasattr(model, "reset_classifier"):
        if num_classes != as_timm(model).num_classes:
            as_timm(model).reset_classifier(num_classes)
        return
    if not (name := classifier_of(model)):
        return
    layer = model.get_submodule(name)
    new: nn.Module | None = None
    if not num_classes:
        new = nn.Identity()
    elif isinstance(layer, nn.Linear) and layer.out_features != num_classes:
        new = nn.Linear(layer.in_features, num_classes, layer.bias is not None)
    elif isinstance(layer, nn.Conv2d) and layer.out_channels != num_classes:
        new = nn.Conv2d(layer.in_channels, num_classes, 1)
    if new is not None:
        model.set_submodule(name, new)
    as_timm(model).num_classes = num_classes  # some say it, and others do not

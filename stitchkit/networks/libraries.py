"""Models of timm and torchvision by name, with published or local weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

from stitchkit.errors import InputError, one_line, unknown
from stitchkit.networks.create import create_model, load_any_classes, resize_classifier
from stitchkit.networks.weights import read_checkpoint


def load_model(
    name: str,
    *,
    backend: str = "timm",
    pretrained: bool = True,
    checkpoint: str | Path | None = None,
    **arguments: object,
) -> nn.Module:
    """A model with its weights.

    Args:
        name: timm's or torchvision's name.
        backend: `timm`, or `torchvision`, also called `pytorch`.
        pretrained: Download its weights.
        checkpoint: A local file with the weights; it excludes `pretrained`.
        arguments: Further arguments of the model; None for the model's default.
    """
    if backend not in LIBRARIES:
        raise unknown("backend", backend, LIBRARIES)
    return LIBRARIES[backend](name, pretrained=pretrained, checkpoint=checkpoint, **arguments)


def bare_model(name: str, backend: str = "timm") -> tuple[nn.Module, torch.Tensor]:
    """A model of a library without weights, on the meta device, and an image that it takes."""
    # Some of torchvision's cannot be built on the meta device.
    with torch.device("meta") if backend == "timm" else nullcontext():
        model = load_model(name, backend=backend, pretrained=False).to("meta").eval()
    size = getattr(model, "pretrained_cfg", {}).get("input_size", (3, 224, 224))
    return model, torch.empty(1, *size, device="meta")


def torchvision_names() -> list[str]:
    """Names of torchvision's classifiers; its models for other tasks are left out."""
    names: list[str] = torchvision.models.list_models(torchvision.models)
    return names


def create_torchvision(name: str, arguments: Mapping[str, Any], *, weights: object = None) -> nn.Module:
    """A classifier of torchvision.

    Args:
        name: Its name.
        arguments: Of its constructor.
        weights: The weights to download, as torchvision takes them; by default they are random.
    """
    if name not in torchvision_names():
        raise unknown("torchvision model", name, torchvision_names())
    try:
        model: nn.Module = torchvision.models.get_model(name, weights=weights, **arguments)
    except Exception as error:  # torchvision, torch and the download raise many types
        raise InputError(
            f"torchvision's '{name}' cannot be loaded with {dict(arguments)}: {one_line(error)}; check the arguments "
            "and the network, give a local checkpoint, or start from random weights (--no-pretrained)"
        ) from error
    return model


def _load_torchvision(
    name: str,
    *,
    pretrained: bool = False,
    checkpoint: str | Path | None = None,
    num_classes: int | None = None,
    **arguments: object,
) -> nn.Module:
    # Published weights fix the number of classes, so another number is set after they are loaded.
    weights = "DEFAULT" if pretrained and checkpoint is None else None
    if weights is None and checkpoint is None and num_classes is not None:
        arguments["num_classes"] = num_classes
    model = create_torchvision(name, arguments, weights=weights)
    if checkpoint is not None:
        load_any_classes(model, read_checkpoint(checkpoint), checkpoint, num_classes)
    elif num_classes is not None:
        resize_classifier(model, num_classes)
    return model


LIBRARIES: dict[str, Callable[..., nn.Module]] = {
    "timm": create_model,
    "torchvision": _load_torchvision,
    "pytorch": _load_torchvision,
}
"""Functions that build models, by the library's names."""

"""Models of timm and torchvision by name, with published or local weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

from stitchkit.classes import note_origin
from stitchkit.errors import InputError, one_line, unknown
from stitchkit.networks.create import create_model
from stitchkit.networks.weight_names import own_names
from stitchkit.networks.weights import load_content, read_checkpoint, weights_of
from stitchkit.settings.schema import ModelArguments, parse

BACKENDS = {"timm": "timm", "torchvision": "torchvision", "pytorch": "torchvision"}
"""The library of each backend name."""


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
    parse(ModelArguments, arguments, "the arguments of the model")
    return LIBRARIES[_library(backend)](name, pretrained=pretrained, checkpoint=checkpoint, **arguments)


def bare_model(name: str, backend: str = "timm") -> tuple[nn.Module, torch.Tensor]:
    """A model of a library without weights, on the meta device, and an image that it takes."""
    # Some of torchvision's cannot be built on the meta device.
    with torch.device("meta") if _library(backend) == "timm" else nullcontext():
        model = load_model(name, backend=backend, pretrained=False).to("meta").eval()
    size = getattr(model, "pretrained_cfg", {}).get("input_size", (3, 224, 224))
    return model, torch.empty(1, *size, device="meta")


def _library(backend: str) -> str:
    if backend not in BACKENDS:
        raise unknown("backend", backend, BACKENDS)
    return BACKENDS[backend]


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
        content = read_checkpoint(checkpoint)
        weight = own_names(model, weights_of(content)).get(f"{classifier_of(model)}.weight")
        if weight is not None and weight.ndim:  # the file's number of classes first, to load it completely
            _resize_classifier(model, len(weight))
        load_content(model, content, checkpoint)
        if weight is None or num_classes in (None, len(weight)):
            note_origin(model, content, checkpoint)
    if num_classes is not None:
        _resize_classifier(model, num_classes)
    return model


def classifier_of(model: nn.Module) -> str:
    """Name of the classifier, the last linear layer; empty if there is none."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return names[-1] if names else ""


def _resize_classifier(model: nn.Module, num_classes: int) -> None:
    """Re-initialise the classifier of a torchvision model if it has another number of classes."""
    layer = model.get_submodule(classifier_of(model))
    if isinstance(layer, nn.Linear) and layer.out_features != num_classes:
        classifier = nn.Linear(layer.in_features, num_classes, bias=layer.bias is not None)
        model.set_submodule(classifier_of(model), classifier)


LIBRARIES: dict[str, Callable[..., nn.Module]] = {"timm": create_model, "torchvision": _load_torchvision}
"""Functions that build models, by library."""

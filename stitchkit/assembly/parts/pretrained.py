"""Parts that are pretrained models of timm or torchvision, or slices of them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision.models import get_model

from stitchkit.assembly.parts.part import Part
from stitchkit.classes import carry_origin, note_origin
from stitchkit.errors import InputError, one_line
from stitchkit.networks.anchor import steps_of
from stitchkit.networks.create import create_model
from stitchkit.networks.cut.nodes import check_torchvision_name, library_of
from stitchkit.networks.layout import Layout
from stitchkit.networks.weight_names import own_names
from stitchkit.networks.weights import load_content, read_checkpoint, weights_of


class WholeNetwork(Part):
    """A whole model. Arguments and errors as in `load_model`.

    Args:
        ckp_path: A local file with the weights; it excludes `pretrained`.
        num_classes: Number of logits; a classifier with another number is re-initialised.
    """

    inferred = ("num_classes",)
    in_format = Layout("NCHW")
    out_format = Layout("vector")

    def __init__(
        self,
        *,
        model_name: str,
        backend: str = "timm",
        pretrained: bool = True,
        ckp_path: str | None = None,
        num_classes: int | None = None,
        **arguments: object,
    ):
        super().__init__()
        self.net = load_model(
            model_name,
            backend=backend,
            pretrained=pretrained,
            checkpoint=ckp_path,
            num_classes=num_classes,
            **arguments,
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images `[B, C, H, W]` to logits `[B, num_classes]`."""
        x = self.net(x)
        return x


class Subnet(Part):
    """A slice of a model, from the input of one block to the output of another.

    Args:
        block_input: Module where it begins, or `x`, the default, for the model's input.
        block_output: Module where it ends; by default at the model's output. A list means several outputs.
        ckp_path: A local file with the weights of the whole model; it excludes `pretrained`.

    Raises:
        InputError: If the model cannot be built, loaded or cut there.
    """

    def __init__(
        self,
        *,
        model_name: str,
        block_input: str | None = None,
        block_output: str | Sequence[str] | None = None,
        backend: str = "timm",
        pretrained: bool = True,
        ckp_path: str | None = None,
        **arguments: object,
    ):
        super().__init__()
        model = load_model(model_name, backend=backend, pretrained=pretrained, checkpoint=ckp_path, **arguments)
        self.net = steps_of(model).between(block_input, block_output)
        if block_output is None or block_output == _classifier(model):
            carry_origin(model, self.net)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The tensor at `block_input` to the one at `block_output`."""
        x = self.net(x)
        return x


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

    Raises:
        InputError: If there is no such backend or model, or it cannot be built or loaded.
    """
    return LIBRARIES[library_of(backend)](name, pretrained=pretrained, checkpoint=checkpoint, **arguments)


def expected_shape(arguments: Mapping[str, Any], input_size: Sequence[int]) -> list[int] | None:
    """Shape, without the batch, of a `Subnet`'s input within its whole model; None if it cannot be found."""
    own = ("block_input", "block_output", "ckp_path", "frozen", "in_format", "out_format", "pretrained", "model_name")
    rest = {name: value for name, value in arguments.items() if name not in own}
    shapes: list[list[int]] = []
    with torch.device("meta"), torch.no_grad(), contextlib.suppress(Exception):  # a hint is not worth an error
        model = load_model(arguments["model_name"], pretrained=False, **rest).eval()
        block = model.get_submodule(arguments["block_input"])
        block.register_forward_pre_hook(lambda _, inputs: shapes.append(list(inputs[0].shape[1:])))
        own_size: Sequence[int] = getattr(model, "pretrained_cfg", {}).get("input_size", input_size)
        for size in (input_size, own_size):  # some models only accept images of their own size
            with contextlib.suppress(Exception):
                model(torch.empty(1, *size))
    return shapes[0] if shapes else None


def _torchvision_model(
    name: str,
    *,
    pretrained: bool = False,
    checkpoint: str | Path | None = None,
    num_classes: int | None = None,
    **arguments: object,
) -> nn.Module:
    check_torchvision_name(name)
    # Published weights fix the number of classes, so another number is set after they are loaded.
    weights = "DEFAULT" if pretrained and checkpoint is None else None
    if weights is None and checkpoint is None and num_classes is not None:
        arguments["num_classes"] = num_classes
    try:
        model: nn.Module = get_model(name, weights=weights, **arguments)
    except Exception as error:  # torchvision, torch and the download raise many types
        raise InputError(
            f"torchvision's '{name}' cannot be loaded with {arguments}: {one_line(error)}; check the arguments and "
            "the network"
        ) from error
    if checkpoint is not None:
        content = read_checkpoint(checkpoint)
        weight = own_names(model, weights_of(content)).get(f"{_classifier(model)}.weight")
        if (
            weight is not None and weight.ndim
        ):  # at first with the file's number of classes, so that it loads completely
            _resize_classifier(model, len(weight))
        load_content(model, content, checkpoint)
        if weight is None or num_classes in (None, len(weight)):
            note_origin(model, content, checkpoint)
    if num_classes is not None:
        _resize_classifier(model, num_classes)
    return model


def _classifier(model: nn.Module) -> str:
    """Name of the classifier, the last linear layer; empty if there is none."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return names[-1] if names else ""


def _resize_classifier(model: nn.Module, num_classes: int) -> None:
    """Re-initialise the classifier of a torchvision model if it has another number of classes."""
    layer = model.get_submodule(_classifier(model))
    if isinstance(layer, nn.Linear) and layer.out_features != num_classes:
        classifier = nn.Linear(layer.in_features, num_classes, bias=layer.bias is not None)
        model.set_submodule(_classifier(model), classifier)


LIBRARIES: dict[str, Callable[..., nn.Module]] = {"timm": create_model, "torchvision": _torchvision_model}
"""Functions that build models, by library."""

"""Parts that are pretrained models of timm or torchvision, or slices of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any

import torch
from pydantic import Field, StrictBool, StrictStr
from torch import nn

from stitchkit.assembly.parts.convnet import ConvNet
from stitchkit.assembly.parts.part import Part
from stitchkit.assembly.parts.weight_names import is_of_job, model_names
from stitchkit.errors import InputError
from stitchkit.networks.classifier import classifier_of
from stitchkit.networks.create import load_any_classes, load_model
from stitchkit.networks.families import steps_of
from stitchkit.networks.layout import Layout
from stitchkit.networks.trained_with import note, noted
from stitchkit.networks.weights import read_checkpoint, weights_of
from stitchkit.settings.fields import Classes
from stitchkit.settings.hub_names import ModelName, hub_fault
from stitchkit.settings.schema import LocalPath

CONVNET = "convnet"
"""The model name of `ConvNet`, which has neither published weights nor a classifier."""


class Pretrained(Part):
    """A model of a library, or a slice of one.

    Args:
        model_name: timm's or torchvision's name, or `convnet`, which starts from random weights.
        backend: The library: `timm`, or `torchvision`, also called `pytorch`.
        pretrained: Download the weights of the whole model.
        ckp_path: A local file with these weights, or a checkpoint of a job with a part that has them; it excludes
            `pretrained`.
    """

    net: nn.Module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images `[B, C, H, W]` to logits `[B, num_classes]`; of a slice, the tensors at its two ends."""
        x = self.net(x)
        return x


class WholeNetwork(Pretrained):
    """A whole model. Further arguments and errors are those of `load_model`.

    Args:
        num_classes: Number of logits; a classifier with another number is re-initialised.
    """

    inferred = ("num_classes",)
    in_format = Layout("NCHW")
    out_format = Layout("vector")

    def __init__(
        self,
        *,
        model_name: ModelName,
        backend: StrictStr = "timm",
        pretrained: StrictBool = True,
        ckp_path: LocalPath | None = None,
        num_classes: Classes | None = None,
        **arguments: Any,
    ):
        super().__init__()
        if end := next((key for key in ("block_input", "block_output") if key in arguments), None):
            raise InputError(f"{end} is {arguments[end]!r}, but Net is a whole model; use Subnet for a slice of it")
        self.net = _model(
            model_name, ckp_path, lambda model: model, backend=backend, pretrained=pretrained, num_classes=num_classes,
            arguments=arguments,
        )  # fmt: skip


class Subnet(Pretrained):
    """A slice of a model, from the input of one block to the output of another.

    Args:
        block_input: Module where it begins, or `x`, the default, for the model's input; published files may list it.
        block_output: Module where it ends; by default at the model's output. A list means several outputs.
        num_classes: Number of logits of the model; a classifier with another number is re-initialised.
    """

    def __init__(
        self,
        *,
        model_name: ModelName,
        block_input: StrictStr | Annotated[list[StrictStr], Field(min_length=1, max_length=1)] | None = None,
        block_output: StrictStr | list[StrictStr] | None = None,
        backend: StrictStr = "timm",
        pretrained: StrictBool = True,
        ckp_path: LocalPath | None = None,
        num_classes: Classes | None = None,
        **arguments: Any,
    ):
        super().__init__()
        first = block_input[0] if isinstance(block_input, list) else block_input

        def ends(model: nn.Module) -> tuple[str | None, str | list[str] | None]:
            named = partial(_layer, model)
            if isinstance(block_output, list):
                return first and named(first), [*map(named, block_output)]
            return first and named(first), block_output and named(block_output)

        def piece(model: nn.Module) -> nn.Module:
            return steps_of(model).between(*ends(model))

        model = _model(
            model_name, ckp_path, piece, backend=backend, pretrained=pretrained, num_classes=num_classes,
            arguments=arguments,
        )  # fmt: skip
        self.net = piece(model)
        if block_output is None or ends(model)[1] == classifier_of(model):
            note(self.net, noted(model))


def _layer(model: nn.Module, name: str) -> str:
    """The name of a linear layer for that of the function in it, such as `classifier.linear`.

    The published tool traces into linear layers of timm.
    """
    path, _, function = name.rpartition(".")
    is_linear = function == "linear" and isinstance(dict(model.named_modules()).get(path), nn.Linear)
    return path if is_linear else name


def _model(
    name: str, path: str | None, piece: Callable[[nn.Module], nn.Module], *, backend: str, pretrained: bool,
    num_classes: int | None, arguments: Mapping[str, Any],
) -> nn.Module:  # fmt: skip
    """A model, of which a `piece` is used, with weights: those of a file of the model, or of a checkpoint of a job."""
    if backend == "satlas":  # of the published jobs
        raise InputError(
            "backend 'satlas' is not available here; from the model's file in huggingface.co/allenai/satlas-pretrain, "
            "save the weights whose names begin with 'backbone.', and set backend: torchvision, the model_name there "
            "(resnet50, resnet152, swin_v2_t or swin_v2_b), and ckp_path: FILE"
        )
    if name == CONVNET:
        if num_classes is not None:
            raise InputError(
                f"num_classes is {num_classes}, but a convnet has no classifier; remove it, and add a head"
            )
        model: nn.Module = ConvNet(**arguments)
    else:
        pretrained = pretrained and path is None
        if pretrained and (fault := hub_fault(name, weights=True)):
            raise InputError(f"'{name}' {fault}")
        model = load_model(name, backend=backend, pretrained=pretrained, num_classes=num_classes, **arguments)
    if path is not None:
        content = read_checkpoint(path)
        if is_of_job(weights := weights_of(content)):
            # Not the slice that will run: loading may replace the classifier.
            needed = piece(model).state_dict().keys()
            content = {**content, "state_dict": model_names(model, needed, weights, path)}
        load_any_classes(model, content, path, num_classes)
    return model

"""Parts that are pretrained models of timm or torchvision, or slices of them."""

from __future__ import annotations

import torch
from pydantic import StrictBool, StrictInt, StrictStr
from torch import nn

from stitchkit.assembly.parts.part import Part
from stitchkit.classes import carry_origin
from stitchkit.networks.anchor import steps_of
from stitchkit.networks.create import classifier_of, load_model
from stitchkit.networks.layout import Layout
from stitchkit.settings.schema import LocalPath


class Pretrained(Part):
    """A model of a library, or a slice of one.

    Args:
        model_name: timm's or torchvision's name.
        backend: The library: `timm`, or `torchvision`, also called `pytorch`.
        pretrained: Download the weights of the whole model.
        ckp_path: A local file with these weights; it excludes `pretrained`.
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
        model_name: StrictStr,
        backend: StrictStr = "timm",
        pretrained: StrictBool = True,
        ckp_path: LocalPath | None = None,
        num_classes: StrictInt | None = None,
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


class Subnet(Pretrained):
    """A slice of a model, from the input of one block to the output of another.

    Args:
        block_input: Module where it begins, or `x`, the default, for the model's input.
        block_output: Module where it ends; by default at the model's output. A list means several outputs.
    """

    def __init__(
        self,
        *,
        model_name: StrictStr,
        block_input: StrictStr | None = None,
        block_output: StrictStr | list[StrictStr] | None = None,
        backend: StrictStr = "timm",
        pretrained: StrictBool = True,
        ckp_path: LocalPath | None = None,
        **arguments: object,
    ):
        super().__init__()
        model = load_model(model_name, backend=backend, pretrained=pretrained, checkpoint=ckp_path, **arguments)
        self.net = steps_of(model).between(block_input, block_output)
        if block_output is None or block_output == classifier_of(model):
            carry_origin(model, self.net)

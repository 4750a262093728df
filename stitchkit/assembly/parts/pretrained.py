"""Parts that are pretrained models of timm or torchvision, or slices of them."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from stitchkit.assembly.parts.part import Part
from stitchkit.classes import carry_origin
from stitchkit.networks.anchor import steps_of
from stitchkit.networks.create import classifier_of, load_model
from stitchkit.networks.layout import Layout


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
        if block_output is None or block_output == classifier_of(model):
            carry_origin(model, self.net)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The tensor at `block_input` to the one at `block_output`."""
        x = self.net(x)
        return x


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

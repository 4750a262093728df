"""Parts that are pretrained models of timm or torchvision, or slices of them."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence, Set
from functools import partial
from typing import Annotated, Any

import torch
from pydantic import Field, StrictBool, StrictStr
from timm.layers import to_2tuple
from torch import nn

from stitchkit.assembly.parts.part import Assembly, Part
from stitchkit.errors import InputError, unknown
from stitchkit.networks.create import load_any_classes, load_model
from stitchkit.networks.families import steps_of
from stitchkit.networks.layout import Layout
from stitchkit.networks.timm_model import classifier_of
from stitchkit.networks.trained_with import note, noted
from stitchkit.networks.weights import read_checkpoint, weights_of
from stitchkit.settings.fields import Classes
from stitchkit.settings.names import ModelName, hub_fault
from stitchkit.settings.schema import LocalPath

# A job whose file has `model` wraps it here, but not in the published system; a plain model's file has neither wrapper.
_ROOTS = ("", "parts.0.", "parts.0.net.")
# The prefix of a pretrained part in a job.
_PRETRAINED = re.compile(r"(?:(?:parts\.\d+|head)\.)*net\.")


def network_names(network: Assembly, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights under the names of a job's network, given those of a checkpoint; names that suit nothing stay."""
    own = network.state_dict().keys()
    parts = {f"{name}.": part for name, part in network.named_modules() if isinstance(part, Part) and part.published}

    def renamed(root: str) -> dict[str, torch.Tensor]:
        named = {root + name: value for name, value in weights.items()}
        for prefix, part in parts.items():
            for old, new in part.published.items():
                before, after = prefix + old, prefix + new
                named = {
                    after + name.removeprefix(before) if name.startswith(before) and name not in own else name: value
                    for name, value in named.items()
                }
        return named

    return max(map(renamed, _ROOTS), key=lambda named: len(named.keys() & own))


def head_of(network: Assembly) -> str:
    """The beginning of the names of the weights of a job's head, which may be in an assembly that is its `model`."""
    prefix, whole = "", network
    while whole.head is None and len(whole.parts) == 1 and isinstance(inner := whole.parts[0], Assembly):
        prefix, whole = f"{prefix}parts.0.", inner
    if whole.head is None:
        raise InputError("load_from.head: the network has no head; name one file for the whole network")
    return f"{prefix}head."


def model_names(
    model: nn.Module, piece: Set[str], weights: Mapping[str, torch.Tensor], path: str
) -> dict[str, torch.Tensor]:
    """The weights of a job under the names of a model, from the part of the job that has all weights of a piece of it.

    The model's own weights stand in for those that the piece does not need. Parts are not combined: they may be of two
    networks with the same names.
    """
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for name, value in weights.items():
        if prefix := _PRETRAINED.match(name):
            parts.setdefault(prefix[0], {})[name.removeprefix(prefix[0])] = value
    own = model.state_dict()
    nearest = max(parts, key=lambda part: len(piece & parts[part].keys()))
    if missing := next((name for name in own if name in piece and name not in parts[nearest]), None):
        raise InputError(
            f"checkpoint '{path}' comes from a job; no part of it holds all these weights: "
            f"{nearest.removesuffix('.net.')} has no {missing}; begin and end it within one part of that job, or name "
            "a file of the whole model"
        )
    return {name: value for name, value in own.items() if name not in piece} | parts[nearest]


Size = int | Sequence[int]
"""A side, or height and width."""

_NORMS: dict[str, Callable[[int], nn.Module]] = {
    **dict.fromkeys(("bn", "batch", "batchnorm"), nn.BatchNorm2d),
    **dict.fromkeys(("in", "instance", "instancenorm"), partial(nn.InstanceNorm2d, affine=True)),
    **dict.fromkeys(("gn", "group", "groupnorm"), partial(nn.GroupNorm, 1)),
}


class ConvNet(nn.Module):
    """Blocks of convolutions, each with a norm and ReLU, and a max-pooling; it has no classifier.

    Each argument from `num_conv_per_block` on, and `num_filters`, may be a list with a value for each block. Two
    numbers for a kernel, stride, padding or pooling are a height and a width.

    Args:
        input_shape: Shape of an image, `[C, H, W]`, whose channels replace `x_dim`.
        x_dim: Channels of an image.
        num_filters: Output channels of a block.
        norm_type: `in`, `bn` or `gn` (one group), or None.
        pool_size: 0 or None for no pooling.

    Source: `convnet` of the published jobs, whose names of weights these are.
    """

    def __init__(
        self, *, input_shape: Sequence[int] | None = None, x_dim: int = 3, num_filters: int | Sequence[int] = 64,
        num_blocks: int = 4, num_conv_per_block: int | Sequence[int] = 1,
        kernel_size: Size | Sequence[Size] = (3, 3), stride: Size | Sequence[Size] = (1, 1),
        padding: Size | Sequence[Size] = 1, norm_type: str | Sequence[str | None] | None = "in",
        pool_size: Size | Sequence[Size | None] | None = 2,
    ):  # fmt: skip
        super().__init__()
        if num_blocks < 1:
            raise InputError(f"num_blocks is {num_blocks}; it must be at least 1")
        per_block = partial(_per_block, count=num_blocks)
        widths = per_block("num_filters", num_filters)
        sizes = {"kernel_size": kernel_size, "stride": stride, "padding": padding}
        settings = zip(
            [x_dim if input_shape is None else input_shape[0], *widths[:-1]], widths,
            per_block("num_conv_per_block", num_conv_per_block),
            *(per_block(name, size, is_size=True) for name, size in sizes.items()),
            per_block("norm_type", norm_type), per_block("pool_size", pool_size, is_size=True), strict=True,
        )  # fmt: skip
        blocks = OrderedDict[str, nn.Module]((f"block{n}", _block(*each)) for n, each in enumerate(settings, start=1))
        self.encoder = nn.Sequential(blocks) if num_blocks > 1 else blocks["block1"]
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight)

    def forward(self, x: object) -> object:
        """Images `[B, C, H, W]` to features `[B, num_filters, H / 2^num_blocks, W / 2^num_blocks]`."""
        return self.encoder(x)


def _per_block(name: str, value: object, *, count: int, is_size: bool = False) -> list[object]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        return [value] * count
    if is_size and len(value) == 2 and not isinstance(value[0], Sequence):
        return [value] * count
    if len(value) != count:
        raise InputError(f"{name} has {len(value)} values for {count} blocks; set one, or one for each block")
    return list(value)


def _block(
    channels: int, width: int, num_conv: int, kernel: Size, stride: Size, padding: Size, norm: str | None,
    pool: Size | None,
) -> nn.Sequential:  # fmt: skip
    if norm is not None and norm not in _NORMS:
        raise unknown("norm_type", norm, _NORMS)
    layers = nn.Sequential()
    for number in range(num_conv):
        before = width if number else channels
        layers.add_module(f"conv{number}", nn.Conv2d(before, width, *map(to_2tuple, (kernel, stride, padding))))
        if norm is not None:
            layers.add_module(f"norm{number}", _NORMS[norm](width))
        layers.add_module(f"relu{number}", nn.ReLU())
    if pool:
        layers.add_module("pool", nn.MaxPool2d(to_2tuple(pool)))
    return layers


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
        self, *, model_name: ModelName, backend: StrictStr = "timm", pretrained: StrictBool = True,
        ckp_path: LocalPath | None = None, num_classes: Classes | None = None, **arguments: Any,
    ):  # fmt: skip
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
        self, *, model_name: ModelName,
        block_input: StrictStr | Annotated[list[StrictStr], Field(min_length=1, max_length=1)] | None = None,
        block_output: StrictStr | list[StrictStr] | None = None, backend: StrictStr = "timm",
        pretrained: StrictBool = True, ckp_path: LocalPath | None = None, num_classes: Classes | None = None,
        **arguments: Any,
    ):  # fmt: skip
        super().__init__()
        first = block_input[0] if isinstance(block_input, list) else block_input

        def ends(model: nn.Module) -> tuple[str | None, str | list[str] | None]:
            named, last = partial(_layer, model), block_output
            return first and named(first), [*map(named, last)] if isinstance(last, list) else last and named(last)

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
    """A model with the weights of its file, or of a checkpoint of a job; the caller uses only a `piece` of it."""
    if backend == "satlas":  # of the published jobs
        raise InputError(
            "backend 'satlas' is not available here; from the model's file in huggingface.co/allenai/satlas-pretrain, "
            "save the weights whose names begin with 'backbone.', and set backend: torchvision, the model_name there "
            "(resnet50, resnet152, swin_v2_t or swin_v2_b), and ckp_path: FILE"
        )
    if name == CONVNET:
        if num_classes is not None:
            raise InputError(f"num_classes is {num_classes}, but a convnet has no classifier; remove it and add a head")
        model: nn.Module = ConvNet(**arguments)
    else:
        pretrained = pretrained and path is None
        if pretrained and (fault := hub_fault(name, weights=True)):
            raise InputError(f"'{name}' {fault}")
        model = load_model(name, backend=backend, pretrained=pretrained, num_classes=num_classes, **arguments)
    if path is not None:
        content = read_checkpoint(path)
        if any(map(_PRETRAINED.match, weights := weights_of(content))):  # of a job
            # Not the slice that will run: loading may replace the classifier.
            needed = piece(model).state_dict().keys()
            content = {**content, "state_dict": model_names(model, needed, weights, path)}
        load_any_classes(model, content, path, num_classes)
    return model

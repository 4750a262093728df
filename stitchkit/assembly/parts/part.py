"""Parts: their common base, heads and other small ones, and those that consist of other parts."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Annotated, ClassVar, TypeAlias

import torch
from pydantic import AfterValidator, StrictStr, WithJsonSchema
from torch import nn
from torch.nn import functional as F

from stitchkit.errors import unknown
from stitchkit.networks.layout import NAMES, Layout
from stitchkit.settings.fields import Classes, Side, Width
from stitchkit.settings.tasks import MIN_DEPTH


def _declared(value: str | list[object]) -> str | list[object]:
    Layout.parse(value)
    return value


Format = Annotated[
    StrictStr | list[object],
    AfterValidator(_declared),
    WithJsonSchema({"anyOf": [{"enum": [*NAMES]}, {"type": "array", "prefixItems": [{"enum": [*NAMES]}, {}]}]}),
]
"""A layout as a file declares it: a name, or a list of a name and a size, `[img, [C, H, W]]`."""


Conversion: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
"""From one layout to another, without weights."""


class Part(nn.Module):
    """A module that an assembly runs: one tensor in, one tensor out."""

    in_format: Layout | None = None
    """The input format unless a file declares another one; None for any."""
    out_format: Layout | None = None
    """The output format unless a file declares another one; None if it does not change."""
    takes: tuple[str, ...] = ()
    """Names of the formats that it accepts as they come; empty for any."""
    inferred: ClassVar[tuple[str, ...]] = ()
    """Arguments that are inferred from the data and the input if a file omits them."""
    published: ClassVar[Mapping[str, str]] = {}
    """How names of its weights begin in published checkpoints, and how they begin here."""
    always_evaluates = False
    """Whether it stays in evaluation mode, whatever mode `train` sets."""

    def freeze(self, *, statistics: bool) -> None:
        """Exclude its weights from training; with `statistics`, nothing in it changes, batch norms included."""
        self.requires_grad_(False)
        self.always_evaluates = statistics
        self.train(self.training)

    def train(self, mode: bool = True) -> Part:
        """Set the mode, unless its statistics are frozen."""
        return super().train(mode and not self.always_evaluates)


class OfMaps(Part):
    """A part whose input is a map `[B, in_channels, H, W]`."""

    in_format: Layout | None = Layout("NCHW")

    def __init__(self, in_channels: int):
        super().__init__()
        self.in_format = Layout("NCHW", in_channels)


class ClassifierHead(OfMaps):
    """Pooling and a linear classifier.

    Args:
        num_classes: Number of logits.
        in_channels: Channels of the input map.
        pooled_size: Height and width after pooling, or one number for both.
    """

    inferred = ("num_classes", "in_channels")
    out_format = Layout("vector")

    def __init__(self, *, num_classes: Classes, in_channels: Width, pooled_size: Side | tuple[Side, Side] = (1, 1)):
        super().__init__(in_channels)
        height, width = (pooled_size, pooled_size) if isinstance(pooled_size, int) else pooled_size
        self.pool = nn.AdaptiveAvgPool2d((height, width))
        self.linear = nn.Linear(in_channels * height * width, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, C, H, W]` to logits `[B, num_classes]`."""
        logits: torch.Tensor = self.linear(self.pool(x).flatten(1))
        return logits


class BaseBlock(OfMaps):
    """The stem of a ResNet: a 7x7 convolution of stride 2, batch norm, ReLU and max-pooling.

    Args:
        channels: Output channels.
        in_channels: Channels of the images.
    """

    inferred = ("in_channels",)

    def __init__(self, *, channels: Width, in_channels: Width):
        super().__init__(in_channels)
        self.conv = nn.Conv2d(in_channels, channels, kernel_size=7, stride=2, padding=3, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.pool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, in_channels, H, W]` to `[B, channels, H / 4, W / 4]`."""
        x = self.pool(F.relu(self.norm(self.conv(x))))
        return x


class Function(Part):
    """A function without weights.

    Args:
        name: A function of `torch.nn.functional` or a method of tensors, with or without the prefix `torch.`. No other
            function is allowed: a configuration is data and cannot run code.
        arguments: The function's further arguments.
    """

    def __init__(self, *, name: StrictStr, **arguments: object):
        super().__init__()
        known = _functions()
        bare = name.removeprefix("torch.").removeprefix("nn.functional.")
        if bare not in known:
            raise unknown("function", name, known)
        self.function = known[bare]
        self.arguments = arguments
        # torch.nn.functional.dropout drops in evaluation too unless it gets the mode.
        self.has_mode = inspect.isfunction(self.function) and "training" in inspect.signature(self.function).parameters

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the function; dropout and the like follow the mode."""
        mode = {"training": self.training} if self.has_mode else {}
        result: torch.Tensor = self.function(x, **(mode | self.arguments))
        return result


@cache
def _functions() -> dict[str, Callable[..., torch.Tensor]]:
    """The functions of `torch.nn.functional` itself, and the tensor methods that return one tensor, by name."""
    # Only from these modules: the namespace also contains other functions, such as warnings.warn.
    homes = (F.__name__, "torch", "torch._C._nn")
    functions = {name: f for name, f in vars(F).items() if inspect.isroutine(f) and f.__module__ in homes}
    members = (name for name, _ in inspect.getmembers(torch.Tensor, callable) if _gives_a_tensor(name))
    methods = {name: getattr(torch.Tensor, name) for name in members}
    return {name: value for name, value in (methods | functions).items() if not name.startswith("_")}


def _gives_a_tensor(method: str) -> bool:
    # Methods in C have no signatures, but the schemas of aten say how many tensors they return. A method that returns
    # none or several, such as `max` over a dimension, cannot stand between two parts.
    operator = None if method.startswith("_") else getattr(torch.ops.aten, method, None)
    if operator is None:
        return method in ("float", "double", "half", "bfloat16")  # casts, which are not operators of aten
    schemas = [getattr(operator, overload)._schema for overload in operator.overloads()]
    return any([str(value.type) for value in schema.returns] == ["Tensor"] for schema in schemas)


class Assembly(Part):
    """Parts that run one after the other; `entries` are the conversions before each, and before a head."""

    def __init__(self, parts: Sequence[Part], entries: Sequence[Conversion], head: Part | None = None):
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.head = head
        self.entries = entries

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run all parts: at the top of a job to logits `[B, num_classes]`, or a list of them."""
        parts = [*self.parts, *([] if self.head is None else [self.head])]
        for entry, part in zip(self.entries, parts, strict=True):
            x = part(entry(x))
        return x


class ParallelPart(Part):
    """Parts that take the same input; their outputs are listed, averaged or concatenated.

    Args:
        entries: The conversion before each part.
        exits: The conversion of each part's output to the common format.
        agg: `none` for a list, or as in `combine`.
        layout: The common format.
    """

    def __init__(
        self, parts: Sequence[Part], entries: Sequence[Conversion], exits: Sequence[Conversion], agg: str,
        layout: Layout,
    ):  # fmt: skip
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.entries, self.exits, self.agg, self.layout = entries, exits, agg, layout

    def forward(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """The combined outputs of all parts."""
        steps = zip(self.entries, self.parts, self.exits, strict=True)
        outputs = [leave(part(enter(x))) for enter, part, leave in steps]
        return outputs if self.agg == "none" else combine(outputs, self.agg, self.layout)


def combine(outputs: list[torch.Tensor], agg: str, layout: Layout) -> torch.Tensor:
    """The mean (`avg`) of tensors of one layout, or all along the sequence (`concat_sequence`) or the channels."""
    if agg == "avg":
        return torch.stack(outputs).mean(dim=0)
    return torch.cat(outputs, dim=1 if agg == "concat_sequence" else layout.channel_dim)


class SegmentationHead(OfMaps):
    """A linear classifier of each position: a 1x1 convolution.

    Args:
        num_classes: Number of logits at a position.
        in_channels: Channels of the input map.
    """

    inferred = ("num_classes", "in_channels")
    out_format = Layout("NCHW")

    def __init__(self, *, num_classes: Classes, in_channels: Width):
        super().__init__(in_channels)
        self.conv = nn.Conv2d(in_channels, num_classes, kernel_size=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, in_channels, H, W]` to logits `[B, num_classes, H, W]`."""
        x = self.conv(x)
        return x


class DepthHead(OfMaps):
    """A depth at each position: a 1x1 convolution, a ReLU, and the smallest depth.

    Args:
        in_channels: Channels of the input map.

    Source: `stitchkit.model.heads.head`, which has the same smallest depth and first bias.
    """

    inferred = ("in_channels",)
    out_format = Layout("NCHW")

    def __init__(self, *, in_channels: Width):
        super().__init__(in_channels)
        self.conv = nn.Conv2d(in_channels, 1, kernel_size=1)
        assert self.conv.bias is not None
        nn.init.ones_(self.conv.bias)  # a ReLU that begins with zeros everywhere never learns

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, in_channels, H, W]` to metres `[B, 1, H, W]`."""
        depth: torch.Tensor = self.conv(x).relu() + MIN_DEPTH
        return depth

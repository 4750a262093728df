"""Formats of stitching jobs: what the axes of a tensor mean, and the way from any one to any other.

`img` `[B, C, H, W]`, `bhwc` `[B, H, W, C]`, `token` `[B, L, C]`, `bert` `[B, 1 + L, C]` with a class token first, and
`vector` `[B, C]`, which counts as a map of one position. Where a size is declared, it leaves the class slot out.

Source: Bridging Large Gaps in Neural Network Representations with Model Stitching, configurations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from stitchkit.errors import InputError, unknown

AXES = {
    "img": "[B, C, H, W]",
    "bhwc": "[B, H, W, C]",
    "token": "[B, L, C]",
    "bert": "[B, 1 + L, C]",
    "vector": "[B, C]",
}
"""The kinds of formats and their axes."""
CLASS_TOKENS = ("zeros", "ones", "avg")
"""What a class token can be where there was none."""


@dataclass(frozen=True)
class TensorFormat:
    """What the axes of a tensor mean, and on demand how long they are.

    Args:
        kind: `img`, `bhwc`, `token`, `bert` or `vector`.
        channels: Number of channels; None for any.
        positions: `(H, W)` of maps, `(L,)` of sequences, `()` of vectors; None for any.
    """

    kind: str
    channels: int | None = None
    positions: tuple[int, ...] | None = None

    @classmethod
    def parse(cls, value: object) -> TensorFormat:
        """The format that a configuration's value describes.

        Args:
            value: A kind; or a kind with a size: `[img, [C, H, W]]`, `[img, [H, W]]`, `[bert, [C, L]]`, `[bert, L]`,
                `[vector, N]`.

        Raises:
            InputError: If it is anything else.
        """
        kind, size = value if isinstance(value, list | tuple) and len(value) == 2 else (value, None)
        if not isinstance(kind, str):
            raise InputError(f"format {value!r} is no format; give a kind, or a kind and a size: [img, [C, H, W]]")
        if kind not in AXES:
            raise unknown("format", kind, AXES)
        if size is None:
            return cls(kind)
        numbers = [size] if isinstance(size, int) else size
        axes = _num_axes(kind)
        if not _are_counts(numbers) or len(numbers) not in (axes, axes + 1):
            raise InputError(f"size {size!r} does not suit {kind} {AXES[kind]}; give {_SIZES[kind]}")
        channels = numbers[0] if len(numbers) > axes else None
        return cls(kind, channels, tuple(numbers[len(numbers) - axes :]))

    @classmethod
    def of(cls, x: torch.Tensor, kind: str) -> TensorFormat:
        """The full format of a tensor of a kind.

        Raises:
            InputError: If it has another number of axes.
        """
        if x.ndim != rank(kind):
            raise InputError(f"a tensor of shape {list(x.shape)} is no {kind} {AXES[kind]}")
        if kind == "img":
            return cls(kind, x.shape[1], tuple(x.shape[2:]))
        if kind == "bert":
            return cls(kind, x.shape[2], (x.shape[1] - 1,))
        return cls(kind, x.shape[-1], tuple(x.shape[1:-1]))

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width; those of a sequence are equal.

        Raises:
            InputError: If the length of a sequence is no perfect square.
        """
        positions = self.positions or ()
        if len(positions) == 2:
            return (positions[0], positions[1])
        length = math.prod(positions)
        side = math.isqrt(length)
        if side * side != length:
            raise InputError(f"{self} has {length} tokens, which is no perfect square and so no map of H x W positions")
        return (side, side)

    def __str__(self) -> str:
        numbers = [*([self.channels] if self.channels is not None else []), *(self.positions or ())]
        return f"{self.kind} {numbers}" if numbers else self.kind


_SIZES = {
    "img": "[C, H, W] or [H, W]",
    "bhwc": "[C, H, W] or [H, W]",
    "token": "[C, L] or L",
    "bert": "[C, L] or L, without the class slot",
    "vector": "N",
}


def rank(kind: str) -> int:
    """Number of axes of a kind, that of the batch among them."""
    return _num_axes(kind) + 2


def _num_axes(kind: str) -> int:
    return {"img": 2, "bhwc": 2, "token": 1, "bert": 1, "vector": 0}[kind]


def _are_counts(numbers: object) -> bool:
    if not isinstance(numbers, Sequence) or isinstance(numbers, str):
        return False
    return all(isinstance(number, int) and not isinstance(number, bool) and number > 0 for number in numbers)


def reformat(x: torch.Tensor, source: TensorFormat, target: TensorFormat, class_token: str = "zeros") -> torch.Tensor:
    """A tensor in another format, resized bilinearly where the target declares another size.

    A class token that the target has no place for is set beside every position, which doubles the channels. Between
    `bert` and `bert` it stays; the publication loses it where the size changes.

    Args:
        x: The tensor.
        source: Its format; sizes are those of the tensor, whatever is declared.
        target: The format to bring it to.
        class_token: What a class token is where `x` has none: `zeros`, `ones`, or `avg`, the mean of all positions.

    Raises:
        InputError: If the channels differ from those declared, a sequence has no grid where one is needed, or a map
            of more than one position is to be a vector.
    """
    found = TensorFormat.of(x, source.kind)
    kind, slot = found.kind, None
    if kind == "bert":
        kind, slot, x = "token", x[:, :1], x[:, 1:]
        if target.kind != "bert":
            x = torch.cat([x, slot.expand_as(x)], dim=-1)
    if _must_resize(found, target):
        x, kind = F.interpolate(_to_map(x, kind), target.grid, mode="bilinear", align_corners=False), "img"
    wanted = "token" if target.kind == "bert" else target.kind
    if kind != wanted:
        x = _from_map(_to_map(x, kind), wanted)
    if target.kind == "bert":
        x = torch.cat([_class_token(x, class_token) if slot is None else slot, x], dim=1)
    channels = TensorFormat.of(x, target.kind).channels
    if target.channels not in (None, channels):
        doubled = f" and makes {channels}, its class token beside every position" if channels != found.channels else ""
        raise InputError(f"{found} has {found.channels} channels{doubled}; {target} takes {target.channels}")
    return x


def _must_resize(found: TensorFormat, target: TensorFormat) -> bool:
    if not target.positions or target.positions == found.positions:
        return False
    return target.grid != found.grid


def _to_map(x: torch.Tensor, kind: str) -> torch.Tensor:
    """A tensor of any kind but `bert` as `[B, C, H, W]`."""
    if kind == "bhwc":
        return x.permute(0, 3, 1, 2)
    if kind == "token":
        return x.transpose(1, 2).reshape(len(x), -1, *TensorFormat.of(x, kind).grid)
    return x[:, :, None, None] if kind == "vector" else x


def _from_map(x: torch.Tensor, kind: str) -> torch.Tensor:
    """`[B, C, H, W]` as any kind but `bert`."""
    if kind == "bhwc":
        return x.permute(0, 2, 3, 1)
    if kind == "token":
        return x.flatten(2).transpose(1, 2)
    if kind == "vector":
        if x.shape[2:] != (1, 1):
            raise InputError(
                f"{TensorFormat.of(x, 'img')} has more than one position and is no vector; pool it first, "
                "e.g. with a ClassifierHead"
            )
        return x.flatten(1)
    return x


def _class_token(x: torch.Tensor, name: str) -> torch.Tensor:
    """A token `[B, 1, C]` for tokens `[B, L, C]`."""
    if name not in CLASS_TOKENS:
        raise unknown("class_token", name, CLASS_TOKENS)
    if name == "avg":
        return x.mean(dim=1, keepdim=True)
    return torch.full_like(x[:, :1], float(name == "ones"))

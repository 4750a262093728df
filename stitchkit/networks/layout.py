"""Layouts: the meaning of a tensor's axes, and the conversion of any layout to any other.

The kinds are timm's `NCHW`, `NHWC` and `NLC`, and `vector` `[B, C]`, which counts as a map of one position. Tokens may
begin with prefix tokens, such as a class token, which have no position in the image. Stitching jobs call the
layouts `img`, `bhwc`, `token`, `bert` (tokens after one prefix token) and `vector`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from stitchkit.errors import InputError, unknown

Kind = Literal["NCHW", "NHWC", "NLC", "vector"]
_NUM_POSITION_AXES = {"NCHW": 2, "NHWC": 2, "NLC": 1, "vector": 0}
_MOST = 2**20
"""Of channels, and of positions along an axis."""
CLASS_TOKENS = ("zeros", "ones", "avg")
"""Values for a new prefix token."""


@dataclass(frozen=True)
class Layout:
    """The axes of a tensor, with their lengths if these are known.

    Args:
        kind: `NCHW`, `NHWC`, `NLC` or `vector`.
        channels: Number of channels; None for any.
        positions: `(H, W)` of maps, `(L,)` of tokens without the prefix, `()` of vectors; None for any.
        num_prefix_tokens: Number of tokens of `NLC` before those of the positions.
        is_by_row: Whether tokens stand in the order of rows; a network may have an order of its own.
    """

    kind: Kind
    channels: int | None = None
    positions: tuple[int, ...] | None = None
    num_prefix_tokens: int = 0
    is_by_row: bool = True

    @classmethod
    def parse(cls, value: object) -> Layout:
        """The layout that a job's configuration declares: a name, or a name with a size such as `[img, [C, H, W]]`."""
        name, size = value if isinstance(value, list | tuple) and len(value) == 2 else (value, None)
        if not isinstance(name, str):
            raise InputError(f"{value!r} is not a format; give a name, or a name and a size: [img, [C, H, W]]")
        if name not in NAMES:
            raise unknown("format", name, NAMES)
        bare = NAMES[name]
        if size is None:
            return bare
        numbers = [size] if isinstance(size, int) else size
        axes = bare.rank - 2
        are_counts = isinstance(numbers, list | tuple) and all(type(n) is int and 0 < n <= _MOST for n in numbers)
        if not are_counts or len(numbers) not in (axes, axes + 1):
            slots = "[C, H, W] or [H, W]" if bare.is_map else "N" if bare.is_vector else "[C, L] or L"
            slots += ", without the class slot" if bare.num_prefix_tokens else ""
            raise InputError(f"size {size!r} does not suit {name} {bare.axes}; give {slots}")
        channels = numbers[0] if len(numbers) > axes else None
        return replace(bare, channels=channels, positions=tuple(numbers[len(numbers) - axes :]))

    def declare(self) -> list[object]:
        """The value that `parse` reads as this layout, e.g. `[img, [C, H, W]]`."""
        return [self.name, [self.channels, *(self.positions or ())]]

    @property
    def name(self) -> str:
        """The name that jobs use; that of the kind if they have none."""
        return next((name for name, layout in NAMES.items() if layout == self.bare), self.kind)

    @property
    def bare(self) -> Layout:
        """The same axes of any length."""
        return Layout(self.kind, num_prefix_tokens=self.num_prefix_tokens, is_by_row=self.is_by_row)

    @property
    def axes(self) -> str:
        """The axes in the notation of docstrings, e.g. `[B, C, H, W]`."""
        prefix = f"{self.num_prefix_tokens} + " if self.num_prefix_tokens else ""
        middle = {"NCHW": "C, H, W", "NHWC": "H, W, C", "NLC": f"{prefix}L, C", "vector": "C"}[self.kind]
        return f"[B, {middle}]"

    @property
    def width(self) -> int:
        """The number of channels, which must be known."""
        assert self.channels is not None, self
        return self.channels

    @property
    def rank(self) -> int:
        """Number of axes, including that of the batch."""
        return 2 + _NUM_POSITION_AXES[self.kind]

    @property
    def channel_dim(self) -> int:
        """The axis of the channels."""
        return 1 if self.kind in ("NCHW", "vector") else -1

    @property
    def is_vector(self) -> bool:
        """Whether there are no positions."""
        return self.kind == "vector"

    @property
    def is_map(self) -> bool:
        """Whether positions are rows and columns."""
        return self.kind in ("NCHW", "NHWC")

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width; those of tokens are equal."""
        positions = self.positions or ()
        if not self.is_by_row:
            raise InputError(f"{self} has its tokens in an order of its own, and so no rows and columns")
        if len(positions) == 2:
            return (positions[0], positions[1])
        length = math.prod(positions)
        side = math.isqrt(length)
        if side * side != length:
            raise InputError(
                f"{self} has {length} tokens, which is not a perfect square and so not a map of H x W positions"
            )
        return (side, side)

    def sized(self, x: torch.Tensor) -> Layout:
        """The layout with the lengths of a tensor's axes."""
        if x.ndim != self.rank:
            raise InputError(f"a tensor of shape {list(x.shape)} is not {self.name} {self.axes}")
        sizes = list(x.shape)
        channels = sizes.pop(self.channel_dim)
        if self.num_prefix_tokens:
            sizes[1] -= self.num_prefix_tokens
        return replace(self, channels=channels, positions=tuple(sizes[1:]))

    def converted_to(self, target: Layout) -> Layout:
        """The full layout of `convert` at the same size; prefix tokens without a slot multiply the channels."""
        beside = 0 if target.num_prefix_tokens else self.num_prefix_tokens
        positions = self.grid if target.is_map else (math.prod(self.positions or ()),)
        return replace(target.bare, channels=self.width * (1 + beside), positions=positions)

    def split(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """A tensor with its channels first, `[B, C, *positions]`, and its prefix tokens `[B, C, P]` if it has any."""
        x = x.movedim(self.channel_dim, 1)
        if not self.num_prefix_tokens:
            return x, None
        return x[..., self.num_prefix_tokens :], x[..., : self.num_prefix_tokens]

    def join(self, x: torch.Tensor, prefix: torch.Tensor | None = None) -> torch.Tensor:
        """The tensor of this layout with features `[B, C, *positions]`, on any grid, and prefix tokens `[B, C, P]`."""
        if self.kind == "NLC":
            x = x.flatten(2)
            x = x if prefix is None else torch.cat([prefix, x], -1)
        elif self.is_vector:
            if math.prod(x.shape[2:]) != 1:
                raise InputError(
                    f"{Layout('NCHW').sized(x)} has more than one position and is not a vector; pool it first, "
                    "e.g. with a ClassifierHead"
                )
            x = x.flatten(1)
        return x.movedim(1, self.channel_dim)

    def maps(self, x: torch.Tensor) -> torch.Tensor:
        """Maps `[B, C, H, W]` of the positions of a tensor; vectors `[B, C]` as they are."""
        features = self.split(x)[0]
        return features if self.is_vector else to_map(features)

    def __str__(self) -> str:
        numbers = [*([self.channels] if self.channels is not None else []), *(self.positions or ())]
        return f"{self.name} {numbers}" if numbers else self.name


NAMES = {
    "img": Layout("NCHW"),
    "bhwc": Layout("NHWC"),
    "token": Layout("NLC"),
    "bert": Layout("NLC", num_prefix_tokens=1),
    "vector": Layout("vector"),
}
"""Layouts by the names that stitching jobs give them.

Source: Bridging Large Gaps in Neural Network Representations with Model Stitching, configurations.
"""


def convert(x: torch.Tensor, source: Layout, target: Layout, *, class_token: str = "zeros") -> torch.Tensor:
    """A tensor in another layout, resized bilinearly if the target declares another size.

    Prefix tokens without a slot in the target are concatenated to every position, which multiplies the channels. If
    both layouts have as many, they are kept; the published stitching jobs lose them if the size changes.

    Args:
        source: The tensor's layout; declared sizes are ignored in favour of the tensor's.
        class_token: Value of new prefix tokens: `zeros`, `ones`, or `avg`, the mean of all positions.
    """
    sized = source.sized(x)
    resized = bool(target.positions) and target.positions != sized.positions and target.grid != sized.grid
    if resized or sized.bare != target.bare:
        features, prefix = sized.split(x)
        if prefix is not None and not target.num_prefix_tokens:
            features, prefix = _beside(features, prefix), None
        if resized:
            features = resize(to_map(features), target.grid, align_corners=False)
        elif sized.kind != target.kind:
            features = to_map(features)
        if target.num_prefix_tokens:
            prefix = prefix_tokens(features, prefix, target.num_prefix_tokens, class_token)
        x = target.join(features, prefix)
    channels = x.shape[target.channel_dim]
    if target.channels not in (None, channels):
        doubled = f" and makes {channels}, its class token beside every position" if channels != sized.channels else ""
        raise InputError(f"{sized} has {sized.channels} channels{doubled}; {target} takes {target.channels}")
    # Prefix tokens are joined with the channels first, a memory order that would slow down all later blocks.
    return x.contiguous() if target.num_prefix_tokens else x


def grids_between(source: Layout, target: Layout) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """The grids before and after a joint of two full layouts; None if they are the same.

    Raises:
        InputError: If positions differ and one of the layouts has no grid.
    """
    if source.positions == target.positions and source.is_by_row == target.is_by_row:
        return None
    if source.is_vector != target.is_vector:
        vector, other = (source, target) if source.is_vector else (target, source)
        raise InputError(f"{vector} has no positions, but {other} does")
    grids = source.grid, target.grid
    return None if grids[0] == grids[1] else grids


def with_prefix_tokens(x: torch.Tensor, present: int, count: int) -> torch.Tensor:
    """Tokens `[B, found + L, C]` as `[B, count + L, C]`.

    The first prefix tokens stay, as a class token comes first; further ones are the mean of the positions.
    """
    if present == count:
        return x
    prefix, positions = x[:, : min(present, count)], x[:, present:]
    new = [positions.mean(1, keepdim=True).expand(-1, count - present, -1)] if count > present else []
    return torch.cat([prefix, *new, positions], 1)


def _beside(features: torch.Tensor, prefix: torch.Tensor) -> torch.Tensor:
    """Tokens `[B, C, L]` with the prefix tokens `[B, C, P]` beside each: `[B, (1 + P) x C, L]`."""
    tokens = features.mT  # concatenated with the channels last, the memory order of tokens
    every = prefix.mT.flatten(1)[:, None].expand(-1, tokens.shape[1], -1)
    return torch.cat([tokens, every], dim=-1).mT


def prefix_tokens(features: torch.Tensor, prefix: torch.Tensor | None, count: int, class_token: str) -> torch.Tensor:
    """Prefix tokens `[B, C, count]` for features `[B, C, *positions]`.

    They are the existing ones `[B, C, P]`, or new ones of a `CLASS_TOKENS` value.
    """
    if prefix is not None and prefix.shape[-1] == count:
        return prefix
    if class_token not in CLASS_TOKENS:
        raise unknown("class_token", class_token, CLASS_TOKENS)
    if class_token == "avg":
        value = features.mean(tuple(range(2, features.ndim)))[..., None]
    else:
        value = torch.full_like(features.flatten(2)[..., :1], float(class_token == "ones"))
    return value.expand(-1, -1, count)


def to_map(features: torch.Tensor) -> torch.Tensor:
    """Features `[B, C, *positions]` as maps `[B, C, H, W]`; tokens are ordered by row on a square grid."""
    if features.ndim == 2:
        return features[:, :, None, None]
    if features.ndim == 3:
        return features.reshape(*features.shape[:2], *Layout("NLC").sized(features.mT).grid)
    return features


def resize(x: torch.Tensor, size: tuple[int, int], *, align_corners: bool) -> torch.Tensor:
    """Maps `[B, C, H, W]` at another size, bilinearly."""
    return x if x.shape[2:] == size else F.interpolate(x, size, mode="bilinear", align_corners=align_corners)


def as_rows(x: torch.Tensor, channel_dim: int = 1) -> torch.Tensor:
    """A tensor of any layout as a matrix `[B x positions, C]`; prefix tokens count as positions."""
    x = x.movedim(channel_dim, -1)
    return x.reshape(-1, x.shape[-1])


def find_layout(shape: tuple[int, ...], model: nn.Module, size: tuple[int, int]) -> Layout | None:
    """The full layout of a tensor inside a model, by its shape with the batch; None if it cannot be known.

    `size` is the height and width of the images, which tell how many tokens have a position.
    """
    layout = None
    if len(shape) == 2:
        layout = Layout("vector")
    if len(shape) == 3:
        # timm's `unroll` changes the order of tokens.
        is_by_row = not hasattr(model, "unroll")
        # Of a model that does not say its prefix, only a square tells it: other proportions fit too many lengths.
        rest = shape[1] - _largest_grid(shape[1], size) if size[0] == size[1] else 0
        # Some models add their prefix tokens after some blocks.
        for prefix in (getattr(model, "num_prefix_tokens", rest), 0):
            if layout is None and _largest_grid(shape[1] - prefix, size) == shape[1] - prefix > 0:
                layout = Layout("NLC", num_prefix_tokens=prefix, is_by_row=is_by_row)
    if len(shape) == 4:
        # Maps have the proportions of the images, which shows where their channels are.
        leading, trailing = (abs(h - w * size[0] / size[1]) < 1 for h, w in (shape[1:3], shape[2:4]))
        last = (leading and not trailing) or getattr(model, "output_fmt", None) == "NHWC"
        layout = Layout("NHWC" if last and (leading or not trailing) else "NCHW")
    return layout and layout.sized(torch.empty(shape, device="meta"))


def _largest_grid(length: int, size: tuple[int, int]) -> int:
    """The most positions, at most `length`, of a grid with exactly the proportions of the images."""
    smallest = math.prod(size) // math.gcd(*size) ** 2
    return smallest * math.isqrt(max(length, 0) // smallest) ** 2

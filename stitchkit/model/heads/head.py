"""What all heads for dense prediction share: they turn the levels of a route into outputs at each position."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import nn

from stitchkit.errors import InputError
from stitchkit.model.levels import Level, LevelInfo


class DenseHead(nn.Module, ABC):
    """A head that predicts at each position, for images of any size.

    Args:
        levels: What the levels are, the first one first.
        num_outputs: Outputs at a position: the number of classes, or 1 for depth.
        min_depth: The outputs are depths in metres, none smaller than this; None for logits.

    Source: for depth, the released code of Stitched ViTs: a ReLU plus the smallest depth.
    """

    def __init__(self, levels: Sequence[LevelInfo], num_outputs: int, *, min_depth: float | None = None):
        super().__init__()
        if not levels or num_outputs < 1:
            raise InputError(
                f"a head needs at least one level and one output, and has {len(levels)} and {num_outputs}; give more"
            )
        self.levels = tuple(levels)
        self.num_outputs = num_outputs
        self.min_depth = min_depth

    @property
    def is_plain(self) -> bool:
        """Whether all levels have the same reduction, as in a plain transformer."""
        return len({level.reduction for level in self.levels}) == 1

    @property
    def needed(self) -> tuple[int, ...]:
        """The numbers of the levels that `forward` uses; auxiliary heads take all."""
        return tuple(range(len(self.levels)))

    def forward(self, levels: Sequence[Level]) -> torch.Tensor:
        """Outputs `[B, num_outputs, h, w]` of the `needed` levels, at the head's own resolution."""
        return self.finished(self.predict(levels))

    def auxiliary(self, levels: Sequence[Level]) -> list[torch.Tensor]:  # noqa: ARG002
        """Outputs `[B, num_outputs, h, w]` of auxiliary heads, which only training uses; most heads have none."""
        return []

    def folded(self) -> DenseHead:
        """This as it is exported, without auxiliary heads."""
        return self

    @abstractmethod
    def predict(self, levels: Sequence[Level]) -> torch.Tensor:
        """Outputs as the last layer gives them, `[B, num_outputs, h, w]`."""

    def last_layer(self, channels: int) -> nn.Conv2d:
        """A new 1x1 convolution of `channels` to the outputs."""
        layer = nn.Conv2d(channels, self.num_outputs, kernel_size=1)
        if self.min_depth is not None:
            # Ours: a ReLU that begins with zeros everywhere has no gradient, and never learns.
            assert layer.bias is not None
            nn.init.ones_(layer.bias)
        return layer

    def finished(self, output: torch.Tensor) -> torch.Tensor:
        """Logits as they are; depths from the smallest one on."""
        return output if self.min_depth is None else output.relu() + self.min_depth

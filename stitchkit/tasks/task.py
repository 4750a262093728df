"""What the tasks of dense prediction share: their losses, their scores, and what they draw."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy.typing as npt
import torch
from PIL.Image import Image
from torch import nn
from torch.nn import functional as F

from stitchkit.measure.answers import BatchScore, Sums
from stitchkit.settings.dense_recipe import DenseRecipe

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GREY = (0.6, 0.6, 0.6)
"""The colour of pixels that do not count."""

Map = npt.NDArray[Any]
Paint = Callable[[Map], Map]
"""The colours `[H, W, 3]` of a map, wherever its values count."""
Truths = Sequence[torch.Tensor]
"""The truth `[H, W]` of each image of a batch."""


class DenseLoss(nn.Module, ABC):
    """The loss of a head's output and, at a lower weight, of its auxiliary outputs.

    Outputs are resized bilinearly to the target, in float32.

    Attributes:
        auxiliary_weight: Weight of the loss of each auxiliary output.
        warm_steps: The number of steps at the start of a training whose loss is the warm one.

    Source: Stitched ViTs, ADE20K and NYUv2.
    """

    auxiliary_weight = 0.4
    warm_steps = 0

    _is_warm = False

    def begin(self, step: int) -> None:
        """Note the number of a step: a count of calls would be wrong after a resumption and after an evaluation."""
        self._is_warm = step < self.warm_steps

    def forward(self, outputs: torch.Tensor | Sequence[torch.Tensor], target: torch.Tensor) -> torch.Tensor:
        """The loss `[]` of an output `[B, num_outputs, h, w]`, or of several, the main one first; target `[B, H, W]`.

        It is zero, and has gradients of zero, if nothing in the target is known.
        """
        loss_of = self._warm_loss if self._is_warm else self._loss
        each = [outputs] if isinstance(outputs, torch.Tensor) else outputs
        sized = [F.interpolate(output.float(), size=target.shape[-2:], mode="bilinear") for output in each]
        main, *others = [loss_of(output, target) for output in sized]
        return main + self.auxiliary_weight * sum(others) if others else main

    @abstractmethod
    def _loss(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The loss of an output `[B, num_outputs, H, W]`."""

    def _warm_loss(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return self._loss(output, target)


class MapScore(BatchScore):
    """Judges maps, one image after the other, since outputs for all pixels are large."""

    def of_batch(self, output: Callable[[Truths], Iterator[torch.Tensor]], targets: Truths) -> Sums:
        """What maps are worth; `output` gives those of all images, `[K, H, W]`, at the sizes of their targets."""
        every = [self.of_image(each, target) for each, target in zip(output(targets), targets, strict=True)]
        own, truth = torch.cat(every).tensor_split([self.own], dim=1)
        return Sums(own.new_zeros(0, dtype=torch.float64), own, truth.int())

    @abstractmethod
    def of_image(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The sums of an image, `[1, own + truth]`."""


@dataclass(frozen=True)
class Example:
    """An image with what is true and what stitches predict at each pixel, `[H, W]`: classes, or metres."""

    image: Map  # RGB in 0 to 1, `[H, W, 3]`
    truth: Map
    known: Map  # whether the truth of a pixel counts
    predicted: tuple[Map, ...]


class DenseTask(ABC):
    """A task of dense prediction; its `DenseFacts` are what needs no torch, its `Targets` how truth is read."""

    @abstractmethod
    def loss(self, settings: DenseRecipe) -> DenseLoss:
        """The loss of a training."""

    @abstractmethod
    def score(self, settings: DenseRecipe, num_classes: int) -> MapScore:
        """What networks are judged by."""

    @abstractmethod
    def predicted(self, output: torch.Tensor) -> Map:
        """The values `[H, W]` that outputs `[K, H, W]` stand for."""

    @abstractmethod
    def known(self, target: torch.Tensor, settings: DenseRecipe) -> torch.Tensor:
        """Whether the truth `[H, W]` of a pixel counts."""

    @abstractmethod
    def paint(self, figure: Figure, grid: Map, examples: Sequence[Example], classes: Sequence[str]) -> Paint:
        """How maps are coloured in a figure of examples, on the axes of `grid`; it gets a legend."""

    @abstractmethod
    def picture(self, output: torch.Tensor) -> Image:
        """What a file has of outputs `[K, H, W]`."""

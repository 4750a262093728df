"""Predictions for images of any size by a network for one: in windows, whose predictions are averaged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch.nn import functional as F

from stitchkit.errors import InputError
from stitchkit.settings.dense_recipe import DenseRecipe
from stitchkit.settings.tasks import DENSE

Run = Callable[[Sequence[torch.Tensor]], Iterable[tuple[int, torch.Tensor]]]
"""Runs networks, in any order, on images in portions `[b, C, H, W]`, one after the other: each one's `cfg_id` and its
outputs for all of them.
"""
Merged = Callable[[Sequence[torch.Tensor]], Iterator[torch.Tensor]]
"""Outputs `[K, H, W]` for images, each at the size of its target `[H, W]`."""


@dataclass(frozen=True)
class Windows:
    """Windows of the size of a network's images, a stride apart, the last ones at the edges.

    For segmentation, an image is first resized so that it is as small as a window in one direction and no smaller in
    the other. Depth depends on the scale, so there images keep theirs, and are padded if they are smaller.

    Source: mmsegmentation's test in `slide` mode.
    """

    size: tuple[int, int]  # height and width of a window
    stride: int  # pixels between windows
    keeps_scale: bool  # whether images are not resized

    @classmethod
    def of_task(cls, settings: DenseRecipe, size: tuple[int, int]) -> Windows:
        """Those of a task, by default two thirds of a window apart; a stride that leaves gaps is refused."""
        stride = settings.window_stride or max(1, 2 * min(size) // 3)
        if stride > min(size):
            sides = f"{size[0]} x {size[1]} pixels; give at most {min(size)}"
            raise InputError(f"--window-stride {stride} would leave gaps between windows of {sides}")
        return cls(size, stride, keeps_scale=DENSE[settings.task].keeps_scale)

    def cut(self, images: Sequence[torch.Tensor]) -> Cut:
        """The windows of images `[C, H, W]` of any sizes, normalised, so that zeros are their mean."""
        windows, places, sides = [], [], []
        for image in images:
            sized = self._sized(image)
            height, width = (max(side, least) for side, least in zip(sized.shape[1:], self.size, strict=True))
            padded = F.pad(sized, (0, width - sized.shape[2], 0, height - sized.shape[1]))
            corners = [(y, x) for y in self._starts(height, 0) for x in self._starts(width, 1)]
            windows += [padded[:, y : y + self.size[0], x : x + self.size[1]] for y, x in corners]
            places.append(corners)
            sides.append((int(sized.shape[1]), int(sized.shape[2])))
        return Cut(torch.stack(windows), places, sides, self.size)

    def outputs(self, run: Run, images: Sequence[torch.Tensor], most: int) -> Iterator[tuple[int, Merged]]:
        """The `cfg_id` of each network and its outputs for images, from windows that run `most` at a time.

        Take the outputs of one before those of the next.
        """
        cut = self.cut(images)
        for cfg_id, outputs in run(cut.portions(most)):
            yield cfg_id, partial(cut.merged, outputs)

    def _sized(self, image: torch.Tensor) -> torch.Tensor:
        if self.keeps_scale:
            return image
        scale = max(least / side for side, least in zip(image.shape[1:], self.size, strict=True))
        sides = [max(least, round(side * scale)) for side, least in zip(image.shape[1:], self.size, strict=True)]
        if sides == [*image.shape[1:]]:
            return image
        # In float32: torch has no antialiasing in types of low precision on a CPU.
        return F.interpolate(image[None].float(), sides, mode="bilinear", antialias=True)[0].to(image.dtype)

    def _starts(self, side: int, axis: int) -> list[int]:
        last = side - self.size[axis]
        return [*range(0, last, self.stride), last]


@dataclass(frozen=True)
class Cut:
    """The windows of some images, and where they are."""

    windows: torch.Tensor  # of all images, `[W, C, h, w]`
    places: Sequence[Sequence[tuple[int, int]]]  # row and column of each window of each image
    sides: Sequence[tuple[int, int]]  # height and width of each image, after it was resized and before it was padded
    size: tuple[int, int]  # height and width of a window

    def portions(self, most: int) -> Sequence[torch.Tensor]:
        """The windows, `most` at a time: a network takes far more memory than they do, and an image may have many."""
        return torch.split(self.windows, most)

    def merged(self, outputs: torch.Tensor, targets: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
        """The outputs `[K, H, W]` for each image at the size of its target `[H, W]`, from those for the windows."""
        (height, width), first = self.size, 0
        for places, sides, target in zip(self.places, self.sides, targets, strict=True):
            own = F.interpolate(outputs[first : first + len(places)].float(), self.size, mode="bilinear")
            first += len(places)
            rows, columns = (max(side, least) for side, least in zip(sides, self.size, strict=True))
            total, count = own.new_zeros(own.shape[1], rows, columns), own.new_zeros(rows, columns)
            for (y, x), output in zip(places, own, strict=True):
                total[:, y : y + height, x : x + width] += output
                count[y : y + height, x : x + width] += 1
            mean = (total / count)[None, :, : sides[0], : sides[1]]
            yield F.interpolate(mean, target.shape, mode="bilinear")[0] if sides != target.shape else mean[0]

"""Transforms of an image together with its mask or depth map, by torchvision's transforms v2.

All random numbers come from torch's global generator, so runs that seed it at each epoch resume bitwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from numpy.typing import NDArray
from PIL.Image import Image
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from stitchkit.data.dense.targets import TARGETS, Targets
from stitchkit.errors import InputError
from stitchkit.settings.tasks import DENSE, NOT_KNOWN

PairTransform: TypeAlias = Callable[[Image, "NDArray[Any]"], tuple[torch.Tensor, torch.Tensor]]
"""From an RGB image and its target `[H, W]` to the normalised image `[3, H, W]` in `float32`, and class numbers in
`int64` or metres in `float32`, `[H, W]`."""

_LONGEST = 4
_MOST_OF_ONE_CLASS, _CROPS = 0.75, 10


@dataclass(frozen=True)
class _TrainingPairs:
    """The `PairTransform` of training: scale, crop, flip, distort the colours, normalise and pad."""

    targets: Targets
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: tuple[float, float] | None
    hflip: float
    distort: v2.Transform | None

    def __call__(self, image: Image, target: NDArray[Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """The image and its target, changed at random, at the size of the crop."""
        pixels, plan = F.pil_to_tensor(image), torch.tensor(target)
        if self.scale is not None:
            pixels, plan = self._scaled(pixels, plan, self.scale)
        top, left = self._corner(plan)
        height, width = self.size
        pixels = pixels[:, top : top + height, left : left + width]
        plan = plan[top : top + height, left : left + width]
        if torch.rand(()) < self.hflip:
            pixels, plan = pixels.flip(-1), plan.flip(-1)
        if self.distort is not None:
            pixels = self.distort(pixels)
        return self._padded(_normalised(pixels, self.mean, self.std), plan.to(self.targets.dtype))

    def _scaled(
        self, pixels: torch.Tensor, plan: torch.Tensor, scale: tuple[float, float]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Resize both by a random factor; factor 1 fits a box as short as the crop and four times as long."""
        short, long = sorted(plan.shape)
        base = min(self.size)
        ratio = float(torch.empty(()).uniform_(*scale)) * min(base / short, _LONGEST * base / long)
        size = [max(1, round(side * ratio)) for side in plan.shape]
        pixels = F.resize_image(pixels, size, InterpolationMode.BILINEAR, antialias=True)
        # The kernel for masks rounds places down, which would shift them by half a pixel against the image.
        return pixels, F.resize_image(plan[None], size, InterpolationMode.NEAREST_EXACT)[0]

    def _corner(self, plan: torch.Tensor) -> tuple[int, int]:
        """The top left corner of a crop that no class dominates."""
        height, width = self.size
        rows, columns = (max(0, side - wanted) + 1 for side, wanted in zip(plan.shape, self.size, strict=True))
        for _ in range(_CROPS if self.targets.is_balanced else 1):
            top, left = int(torch.randint(rows, ())), int(torch.randint(columns, ()))
            if not self.targets.is_balanced:
                break
            part = plan[top : top + height, left : left + width]
            counts = torch.bincount(part.flatten(), minlength=NOT_KNOWN + 1)[:NOT_KNOWN]
            if counts.max() < _MOST_OF_ONE_CLASS * counts.sum():
                break
        return top, left

    def _padded(self, pixels: torch.Tensor, plan: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Both at the size of the crop, with the mean, which is 0 now, and pixels that do not count."""
        down, right = (wanted - side for side, wanted in zip(plan.shape, self.size, strict=True))
        around = [0, 0, right, down]
        return F.pad_image(pixels, around, fill=0), F.pad_image(plan[None], around, fill=self.targets.unknown)[0]


def _evaluated(
    image: Image, target: NDArray[Any], *, dtype: torch.dtype, mean: Sequence[float], std: Sequence[float]
) -> tuple[torch.Tensor, torch.Tensor]:
    return _normalised(F.pil_to_tensor(image), mean, std), torch.tensor(target).to(dtype)


def _normalised(pixels: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    normalised: torch.Tensor = F.normalize_image(F.to_dtype_image(pixels, torch.float32, scale=True), [*mean], [*std])
    return normalised


def training_transform(
    task: str,
    size: tuple[int, int],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    scale: tuple[float, float] = (0.5, 2.0),
    hflip: float = 0.5,
    color_jitter: bool = True,
) -> PairTransform:
    """The augmentation of SN-Netv2's recipes for dense prediction.

    Segmentation: the image is scaled to fit a box whose short side is that of the crop and whose long side is four
    times as long, (2048, 512) for crops of 512, times a random factor. The first of ten random crops where no class
    has 75 % of the pixels that count is taken. Brightness, contrast, saturation and hue change with a probability of
    0.5 each. Depth: the image keeps its scale, which metric depth depends on; it is cropped, flipped, and its colours
    change slightly. Crops that are too small are padded at the right and below: the image with the mean, masks with
    255, depth with 0. Masks are resized to the nearest pixel.

    Source: SN-Netv2's `segmentation/` and `depth_estimation/`, on mmsegmentation 1.x and the
    Monocular-Depth-Estimation-Toolbox. Images are resized with antialiasing here, the colours of depth's images change
    by torchvision's jitter in place of a gamma, and there are no rotations by up to 2.5 degrees.
    """
    _check(mean, std)
    targets, zoom = TARGETS[task], None if DENSE[task].keeps_scale else scale
    distort = targets.distort if color_jitter else None
    return _TrainingPairs(targets, size, tuple(mean), tuple(std), zoom, hflip, distort)


def evaluation_transform(task: str, *, mean: Sequence[float], std: Sequence[float]) -> PairTransform:
    """Normalise images, at their own size."""
    _check(mean, std)
    return partial(_evaluated, dtype=TARGETS[task].dtype, mean=mean, std=std)


def _check(mean: Sequence[float], std: Sequence[float]) -> None:
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise InputError(f"mean is {mean!r} and std {std!r}; RGB images need three of each, and std above 0")

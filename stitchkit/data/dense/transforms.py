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

from stitchkit.data.dense.maps import IGNORED, UNKNOWN_DEPTH
from stitchkit.errors import InputError

PairTransform: TypeAlias = Callable[[Image, "NDArray[Any]"], tuple[torch.Tensor, torch.Tensor]]
"""From an RGB image and its target `[H, W]` to the normalised image `[3, H, W]` in `float32`, and class numbers in
`int64` or metres in `float32`, `[H, W]`."""

_DTYPES = {"segmentation": torch.int64, "depth": torch.float32}
_LONGEST = 4
_MOST_OF_ONE_CLASS, _CROPS = 0.75, 10


@dataclass(frozen=True)
class _TrainingPairs:
    """The `PairTransform` of training: scale, crop, flip, distort the colours, normalise and pad."""

    task: str
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
        return self._padded(_normalised(pixels, self.mean, self.std), plan.to(_DTYPES[self.task]))

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
        for _ in range(_CROPS if self.task == "segmentation" else 1):
            top, left = int(torch.randint(rows, ())), int(torch.randint(columns, ()))
            if self.task != "segmentation":
                break
            part = plan[top : top + height, left : left + width]
            counts = torch.bincount(part.flatten(), minlength=IGNORED + 1)[:IGNORED]
            if counts.max() < _MOST_OF_ONE_CLASS * counts.sum():
                break
        return top, left

    def _padded(self, pixels: torch.Tensor, plan: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Both at the size of the crop, with the mean, which is 0 now, and pixels that do not count."""
        down, right = (wanted - side for side, wanted in zip(plan.shape, self.size, strict=True))
        around = [0, 0, right, down]
        outside = IGNORED if self.task == "segmentation" else UNKNOWN_DEPTH
        return F.pad_image(pixels, around, fill=0), F.pad_image(plan[None], around, fill=outside)[0]


def _evaluated(
    image: Image, target: NDArray[Any], *, task: str, mean: Sequence[float], std: Sequence[float]
) -> tuple[torch.Tensor, torch.Tensor]:
    return _normalised(F.pil_to_tensor(image), mean, std), torch.tensor(target).to(_DTYPES[task])


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
    return _TrainingPairs(
        task, size, tuple(mean), tuple(std), scale if task == "segmentation" else None, hflip,
        _distortion(task) if color_jitter else None,
    )  # fmt: skip


def _distortion(task: str) -> v2.Transform:
    if task == "depth":
        return v2.RandomApply([v2.ColorJitter(brightness=0.25, contrast=0.1, saturation=0.1)], p=0.5)
    steps: list[dict[str, float]] = [{"brightness": 32 / 255}, {"contrast": 0.5}, {"saturation": 0.5}, {"hue": 0.1}]
    return v2.Compose([v2.RandomApply([v2.ColorJitter(**step)], p=0.5) for step in steps])


def evaluation_transform(task: str, *, mean: Sequence[float], std: Sequence[float]) -> PairTransform:
    """Normalise images, at their own size."""
    _check(mean, std)
    return partial(_evaluated, task=task, mean=mean, std=std)


def _check(mean: Sequence[float], std: Sequence[float]) -> None:
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise InputError(f"mean is {mean!r} and std {std!r}; RGB images need three of each, and std above 0")

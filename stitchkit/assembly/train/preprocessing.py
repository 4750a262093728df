"""Preparation of images: torchvision's v2 transforms from a configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import TypeAlias

import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, ResizeKeepRatio
from torchvision.transforms import v2

from stitchkit.assembly.config.settings import Augmentation, Preprocessing, TaskConfig
from stitchkit.errors import InputError, one_line, unknown

Transform: TypeAlias = Callable[[Image.Image], torch.Tensor]
TRANSFORMS: dict[str, Callable[..., torch.nn.Module]] = {
    name: kind for name, kind in vars(v2).items() if isinstance(kind, type) and issubclass(kind, torch.nn.Module)
}
# The means and standard deviations of the published jobs, in 255ths; there, SVHN is normalised as ImageNet is.
_NORMALISATIONS = {
    name: ([part / 255 for part in mean], [part / 255 for part in std])
    for name, mean, std in (
        ("cifar10", (125.3, 123.0, 113.9), (63.0, 62.1, 66.7)),
        ("cifar100", (129.3, 124.1, 112.4), (68.2, 65.4, 70.4)),
    )
}
# Arguments for which torchvision has enumerations.
_ENUMS: dict[str, type[Enum]] = {"interpolation": v2.InterpolationMode, "policy": v2.AutoAugmentPolicy}


def create_transform(task: TaskConfig, place: str, *, training: bool) -> Transform:
    """The transform of a task's images to tensors `[3, H, W]`, H and W the image size; in `training`, at random.

    Errors begin with the `place` of the task in the file.
    """
    how, place = task.data_preprocessing, f"{place}.data_preprocessing"
    dataset = task.name.lower().replace("-", "")
    steps = _resize(how, crop=training and how.random_resize_scale != (1.0, 1.0))
    if training:
        steps += _augmentation(task.augmentation, dataset, f"{place}.data_augmentation")
    mean, std = _NORMALISATIONS.get(dataset, (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    # RGB first, because AutoAugment does not work on palettes.
    steps = [v2.RGB(), *steps, v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    transform: Transform = v2.Compose([*steps, v2.Normalize(list(how.mean or mean), list(how.std or std))])
    return transform


def _resize(how: Preprocessing, *, crop: bool) -> list[Callable[..., object]]:
    mode, size = v2.InterpolationMode(how.interpolation), how.size
    side = size[0] if size[0] == size[1] else None
    if crop:
        return [v2.RandomResizedCrop(size, scale=how.random_resize_scale, interpolation=mode)]
    if how.resize_mode == "squash":
        return [v2.Resize(size, interpolation=mode)]
    if side is None:  # torchvision scales only to a side
        longest = float(how.resize_mode == "longest")
        return [ResizeKeepRatio(size, longest, how.interpolation), v2.CenterCrop(size)]
    if how.resize_mode == "shortest":
        return [v2.Resize(side, interpolation=mode), v2.CenterCrop(side)]
    # CenterCrop pads smaller images: the longer side fits, and the shorter one is filled up.
    return [v2.Resize(None, max_size=side, interpolation=mode), v2.CenterCrop(side)]


def _augmentation(setting: Augmentation, dataset: str, place: str) -> list[Callable[..., object]]:
    if setting is True or setting == "default":
        policies = {"cifar": v2.AutoAugmentPolicy.CIFAR10, "svhn": v2.AutoAugmentPolicy.SVHN}
        own = next((policy for name, policy in policies.items() if dataset.startswith(name)), None)
        return [v2.RandomHorizontalFlip(), v2.AutoAugment(own or v2.AutoAugmentPolicy.IMAGENET)]
    return [*_transforms(setting, place)] if isinstance(setting, Sequence) else []


def _transforms(items: Sequence[object], place: str) -> list[torch.nn.Module]:
    return [_transform(item, f"{place}[{number}]") for number, item in enumerate(items)]


def _transform(item: object, place: str) -> torch.nn.Module:
    """One transform: its name, or a mapping of its name to its arguments."""
    item = {item: None} if isinstance(item, str) else item
    if not isinstance(item, Mapping) or len(item) != 1:
        raise InputError(f"{place} is {item!r}; a transform is one class name with its arguments")
    [(name, arguments)] = item.items()
    if name not in TRANSFORMS:
        raise InputError(f"{place}: {unknown('transform', str(name), TRANSFORMS)}")
    try:
        given = dict(arguments or {})
        for key in given.keys() & _ENUMS.keys():
            given[key] = _enum(key, given[key], f"{place}.{name}")
        if "transforms" in given:
            given["transforms"] = _transforms(given["transforms"], f"{place}.{name}.transforms")
        return TRANSFORMS[name](**given)
    except InputError:
        raise
    except Exception as error:  # transforms raise many types
        raise InputError(
            f"{place}: {name} rejects its arguments: {one_line(error)}; torchvision.transforms.v2.{name} documents "
            "what it takes"
        ) from error


def _enum(key: str, value: object, place: str) -> Enum:
    try:
        return _ENUMS[key](value)
    except ValueError:
        raise InputError(f"{place}.{key}: {unknown(key, str(value), [item.value for item in _ENUMS[key]])}") from None

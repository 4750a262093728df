"""Preparation of images: torchvision's v2 transforms from a configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from math import floor
from pathlib import Path
from typing import Any, TypeAlias, cast

import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, ResizeKeepRatio
from torchvision.transforms import v2

from stitchkit.assembly.config.job import JobConfig
from stitchkit.assembly.config.settings import Augmentation, Preprocessing, TaskConfig, is_used
from stitchkit.engine.checkpoint_files import read_alike
from stitchkit.errors import InputError, one_line, unknown
from stitchkit.networks.data_config import data_config_of
from stitchkit.networks.trained_with import TrainedWith

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
_IMAGENET = [*IMAGENET_DEFAULT_MEAN], [*IMAGENET_DEFAULT_STD]
_INTERPOLATION = "bicubic"
_CROP_MODES = {"shortest": "center", "longest": "border", "squash": "squash"}  # timm's names of ways to resize
_SETTING_OF = {"crop_mode": "resize_mode"}
_DECODING = ("input_img_mode", "background", "exif")
# Arguments that are enumerations in torchvision.
_ENUMS: dict[str, type[Enum]] = {"interpolation": v2.InterpolationMode, "policy": v2.AutoAugmentPolicy}


def create_transform(task: TaskConfig, where: str, *, training: bool) -> Transform:
    """The transform of a task's decoded images to tensors `[3, H, W]`, H and W the image size; `training` adds chance.

    Errors begin with `where` the task is in the file.
    """
    how, where = task.data_preprocessing, f"{where}.data_preprocessing"
    steps = _resize(how, crop=training and how.random_resize_scale != (1.0, 1.0))
    if training:
        steps += _augmentation(task.augmentation, _dataset(task), f"{where}.data_augmentation")
    mean, std = _normalisation(task)
    steps = [*steps, v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    transform: Transform = v2.Compose([*steps, v2.Normalize(mean, std)])
    return transform


def _dataset(task: TaskConfig) -> str:
    return task.name.lower().replace("-", "")


def _normalisation(task: TaskConfig) -> tuple[list[float], list[float]]:
    how, (mean, std) = task.data_preprocessing, _NORMALISATIONS.get(_dataset(task), _IMAGENET)
    return list(how.mean or mean), list(how.std or std)


def _resize(how: Preprocessing, *, crop: bool) -> list[Callable[..., object]]:
    interpolation, size = how.interpolation or _INTERPOLATION, how.size
    mode = v2.InterpolationMode(interpolation)
    if crop:
        return [v2.RandomResizedCrop(size, scale=how.random_resize_scale, interpolation=mode)]
    scaled = [floor(length / (how.crop_pct or 1)) for length in size]
    cut = v2.CenterCrop(size)  # it pads smaller images: the longer side fits, and the shorter one is filled up
    if how.resize_mode == "squash":
        return [v2.Resize(scaled, interpolation=mode), cut]
    longest = how.resize_mode == "longest"
    if scaled[0] != scaled[1]:  # torchvision scales only to a side
        return [ResizeKeepRatio(scaled, float(longest), interpolation), cut]
    return [v2.Resize(None if longest else scaled[0], max_size=scaled[0] if longest else None, interpolation=mode), cut]


def data_config(task: TaskConfig) -> dict[str, Any]:
    """How the images of a task are prepared, under timm's names; those of a dense task keep their sizes."""
    how, (mean, std) = task.data_preprocessing, _normalisation(task)
    decoding = {key: value for key in _DECODING if (value := getattr(how, key)) is not None}
    config: dict[str, Any] = {**data_config_of({"mean": mean, "std": std, **decoding}, (3, *how.size), {})}
    crop = {"crop_pct": how.crop_pct or 1.0, "crop_mode": _CROP_MODES[how.resize_mode or "shortest"]}
    config |= {"interpolation": how.interpolation or _INTERPOLATION} | crop
    return {key: value for key, value in config.items() if is_used(_SETTING_OF.get(key, key), task.task)}


def with_preparation(config: JobConfig) -> JobConfig:
    """A job that prepares images as in the training of the weights it starts from, where its file leaves that open.

    Of several files, the first decides, whose network reads the images. What is taken from it is said, and so is
    whatever differs from any of them. Every rank calls this.
    """
    files = [path for path in dict.fromkeys(config.starts_from) if Path(path).is_file()]
    every = [TrainedWith.read(read_alike(path)[0], path) for path in files]
    for trained in every:
        if trained.input_size and trained.input_size[0] != 3:
            raise InputError(
                f"checkpoint '{trained.path}' was trained on images of {trained.input_size[0]} channels, and those of "
                "jobs have 3; give weights of such images, or use stitchkit train"
            )
    first = next((trained for trained in every if trained.image or trained.input_size), None)
    prepared = config if first is None else _prepared(config, first)
    for before, task in zip(config.train_config.resolved_tasks, prepared.train_config.resolved_tasks, strict=True):
        was, now = data_config(before), data_config(task)
        taken = {key: value for key, value in now.items() if value != was[key]}
        if taken and first is not None:
            first.say_taken(taken, of=task.name)
        for trained in every:
            trained.say_unlike(now)
    return prepared


def _prepared(config: JobConfig, trained: TrainedWith) -> JobConfig:
    """A job whose tasks take over what they leave open."""
    train, content = config.train_config, config.to_dict()
    settings: dict[str, Any] = dict(cast(Mapping[str, Any], content["train_config"]))
    has_size = any(task.data_preprocessing.image_size for task in train.resolved_tasks)  # all have the same
    own = settings.get("data_preprocessing", {})
    shared = [{key: value for key, value in own.items() if is_used(key, task.task)} for task in train.resolved_tasks]
    tasks = [
        {**task, "data_preprocessing": task.get("data_preprocessing", each) | _left_open(resolved, trained, has_size)}
        for task, resolved, each in zip(settings.get("tasks") or [{}], train.resolved_tasks, shared, strict=True)
    ]
    settings |= {"tasks": tasks} if train.tasks else tasks[0]
    return JobConfig.parse({**content, "train_config": settings})


def _left_open(task: TaskConfig, trained: TrainedWith, has_size: bool) -> dict[str, Any]:
    """The settings of images that a task leaves open, as in a training; `has_size` if the job sets the size."""
    how, image = task.data_preprocessing, trained.image
    known = {key: image.get(key) for key in ("mean", "std", "interpolation", "crop_pct", *_DECODING)}
    known["resize_mode"] = {name: mode for mode, name in _CROP_MODES.items()}.get(image.get("crop_mode", ""))
    known["image_size"] = None if has_size or trained.input_size is None else trained.input_size[1:]
    return {
        key: [*value] if isinstance(value, tuple) else value
        for key, value in known.items()
        if value is not None and getattr(how, key) is None and is_used(key, task.task)
    }


def _augmentation(setting: Augmentation, dataset: str, where: str) -> list[Callable[..., object]]:
    if setting is True or setting == "default":
        policies = {"cifar": v2.AutoAugmentPolicy.CIFAR10, "svhn": v2.AutoAugmentPolicy.SVHN}
        own = next((policy for name, policy in policies.items() if dataset.startswith(name)), None)
        return [v2.RandomHorizontalFlip(), v2.AutoAugment(own or v2.AutoAugmentPolicy.IMAGENET)]
    return [*_transforms(setting, where)] if isinstance(setting, Sequence) else []


def _transforms(items: Sequence[object], where: str) -> list[torch.nn.Module]:
    return [_transform(item, f"{where}[{number}]") for number, item in enumerate(items)]


def _transform(item: object, where: str) -> torch.nn.Module:
    """One transform: its name, or a mapping of its name to its arguments."""
    item = {item: None} if isinstance(item, str) else item
    if not isinstance(item, Mapping) or len(item) != 1:
        raise InputError(f"{where} is {item!r}; a transform is one class name with its arguments")
    [(name, arguments)] = item.items()
    if name not in TRANSFORMS:
        raise InputError(f"{where}: {unknown('transform', str(name), TRANSFORMS)}")
    try:
        own = dict(arguments or {})
        for key in own.keys() & _ENUMS.keys():
            known = {item.value: item for item in _ENUMS[key]}
            if own[key] not in known:
                raise InputError(f"{where}.{name}.{key}: {unknown(key, str(own[key]), known)}")
            own[key] = known[own[key]]
        if "transforms" in own:
            own["transforms"] = _transforms(own["transforms"], f"{where}.{name}.transforms")
        return TRANSFORMS[name](**own)
    except InputError:
        raise
    except Exception as error:  # transforms raise many types
        raise InputError(
            f"{where}: {name} rejects its arguments: {one_line(error)}; torchvision.transforms.v2.{name} documents "
            "what it takes"
        ) from error

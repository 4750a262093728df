"""The preparation of images that belongs to a network, under timm's names, wherever the network goes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypedDict

from timm.data import resolve_data_config
from timm.data.loader import adapt_to_chs
from torch import nn

from stitchkit.errors import InputError, unknown
from stitchkit.networks.timm_model import as_timm

IMAGE = ("mean", "std", "interpolation", "crop_pct", "crop_mode")
"""Settings of a preparation; all but the size, which the network decides."""


class Preparation(TypedDict):
    """The preparation of images for a network, under timm's names."""

    input_size: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float
    crop_mode: str


def image_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of some settings that prepare images and are set."""
    return {key: settings[key] for key in IMAGE if settings.get(key)}


def preparation_of(
    image: Mapping[str, Any], input_size: tuple[int, ...], pretrained_cfg: Mapping[str, Any]
) -> Preparation:
    """The preparation of images of size `(C, H, W)`, with a mean and a deviation for each channel.

    What `image` leaves open is as in timm's `pretrained_cfg`.
    """
    found = resolve_data_config({**image, "input_size": tuple(input_size)}, pretrained_cfg=dict(pretrained_cfg))
    return Preparation(
        input_size=found["input_size"],
        mean=adapt_to_chs(tuple(found["mean"]), input_size[0]),
        std=adapt_to_chs(tuple(found["std"]), input_size[0]),
        interpolation=found["interpolation"],
        crop_pct=found["crop_pct"],
        crop_mode=found["crop_mode"],
    )


def check_image(image: Mapping[str, object], channels: int) -> None:
    """Refuse settings that cannot prepare images with this number of channels."""
    for key, value in image.items():
        if key not in IMAGE:
            raise unknown("setting of images", key, IMAGE)
        if not _fits(key, value) or (isinstance(value, list | tuple) and len(value) not in (1, channels)):
            raise InputError(f"'{key}' of images is {value!r}, which is not valid for images of {channels} channels")


def _fits(key: str, value: object) -> bool:
    if key in ("mean", "std"):
        return isinstance(value, list | tuple) and bool(value) and all(map(_is_number, value))
    return _is_number(value) if key == "crop_pct" else isinstance(value, str)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def saved_image(network: nn.Module) -> dict[str, object]:
    """The preparation of a network's images as plain data, for its files."""
    found = image_of(as_timm(network).pretrained_cfg)
    return {key: list(value) if isinstance(value, tuple) else value for key, value in found.items()}


def trained_image(content: Mapping[str, object]) -> dict[str, Any]:
    """The preparation that a checkpoint was trained with.

    Empty if it says none, as published checkpoints, or something else in its place.
    """
    found = content.get("image")
    if not isinstance(found, Mapping) or not all(key in IMAGE and _fits(key, value) for key, value in found.items()):
        return {}
    return {key: tuple(value) if isinstance(value, list) else value for key, value in found.items()}


def take_image(network: nn.Module, image: Mapping[str, Any]) -> None:
    """Note on a network how its images are prepared, where `timm.data.resolve_model_data_config` finds it."""
    if hasattr(network, "pretrained_cfg"):  # torchvision's have none
        as_timm(network).pretrained_cfg = {**as_timm(network).pretrained_cfg, **image}

"""The data config of a network, in timm's sense: how its images are prepared, wherever the network goes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypedDict, cast

import numpy as np
from timm.data import resolve_data_config
from torch import nn
from torchvision.transforms import InterpolationMode

from stitchkit.errors import InputError, unknown
from stitchkit.networks.anchor import Anchor
from stitchkit.networks.timm_model import as_timm


class DataConfig(TypedDict):
    """The preparation of images for a network, under timm's names."""

    input_size: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float
    crop_mode: str


KEYS = tuple(DataConfig.__annotations__)
_GIVEN = KEYS[1:]
"""All but the size, which the network decides."""
_CHOICES = {
    "interpolation": tuple(mode.value for mode in InterpolationMode if mode != InterpolationMode.NEAREST_EXACT),
    "crop_mode": ("center", "squash", "border"),
}
"""timm's values."""


def given_data_config(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of some settings that prepare images and are set."""
    return {key: settings[key] for key in _GIVEN if settings.get(key)}


def data_config_of(
    given: Mapping[str, Any], input_size: tuple[int, ...], pretrained_cfg: Mapping[str, Any]
) -> DataConfig:
    """The preparation of images of size `(C, H, W)`, with a mean and a deviation for each channel.

    What is not `given` is as in timm's `pretrained_cfg`.
    """
    check_data_config(given, input_size[0])
    found = resolve_data_config({**given, "input_size": tuple(input_size)}, pretrained_cfg=dict(pretrained_cfg))
    per_channel = {key: _per_channel(tuple(found[key]), input_size[0]) for key in ("mean", "std")}
    return cast(DataConfig, {key: found[key] for key in KEYS} | per_channel)


def _per_channel(figures: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """A figure for each channel: those given, or else their average, as timm takes it, which logs a line each time."""
    return figures if len(figures) == channels else (float(np.mean(figures)),) * channels


def unlike_normalisation(anchors: Mapping[str, Anchor]) -> str:
    """What to say if anchors, by label, differ in mean or deviation; empty if they do not.

    An SN-Net normalises all images as its last anchor does.
    """
    found = {label: resolve_data_config({}, pretrained_cfg=dict(one.pretrained_cfg)) for label, one in anchors.items()}
    ways = {label: (tuple(config["mean"]), tuple(config["std"])) for label, config in found.items()}
    if len({*ways.values()}) < 2:
        return ""
    listed = "; ".join(f"{label} {mean} {std}" for label, (mean, std) in ways.items())
    return (
        f"anchors expect images with different mean and std ({listed}); those of {[*ways][-1]} are used for all, "
        "unless stitchkit train gets --mean and --std"
    )


def check_data_config(given: Mapping[str, object], channels: int) -> None:
    """Refuse settings that cannot prepare images with this number of channels."""
    for key, value in given.items():
        if key not in _GIVEN:
            raise unknown("setting of images", key, _GIVEN)
        if key in _CHOICES and not _fits(key, value):
            raise unknown(f"'{key}' of images", str(value), _CHOICES[key])
        if not _fits(key, value) or (isinstance(value, list | tuple) and len(value) not in (1, channels)):
            raise InputError(f"'{key}' of images is {value!r}, which is not valid for images of {channels} channels")


def _fits(key: str, value: object) -> bool:
    if key in ("mean", "std"):
        return isinstance(value, list | tuple) and bool(value) and all(map(_is_number, value))
    if key == "crop_pct":
        return _is_number(value)
    return value in _CHOICES[key]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def saved_data_config(network: nn.Module) -> dict[str, object]:
    """The data config of a network as plain data, for its files."""
    return plain_data_config(as_timm(network).pretrained_cfg)


def plain_data_config(config: Mapping[str, Any]) -> dict[str, object]:
    """A data config without the size of images as plain data, as checkpoints have it."""
    known = given_data_config(config)
    return {key: list(value) if isinstance(value, tuple) else value for key, value in known.items()}


def trained_data_config(content: Mapping[str, object]) -> dict[str, Any]:
    """The data config that a checkpoint was trained with.

    Empty if it has none, as published checkpoints, or something else in its place.
    """
    found = content.get("image")
    if not isinstance(found, Mapping) or not all(key in _GIVEN and _fits(key, value) for key, value in found.items()):
        return {}
    return {key: tuple(value) if isinstance(value, list) else value for key, value in found.items()}


def set_data_config(network: nn.Module, config: Mapping[str, Any]) -> None:
    """Set the data config of a network, or some of it, where `timm.data.resolve_model_data_config` finds it."""
    if hasattr(network, "pretrained_cfg"):  # torchvision's have none
        as_timm(network).pretrained_cfg = {**as_timm(network).pretrained_cfg, **config}

"""The data config of a network: how its images are decoded and, in timm's sense, prepared, wherever it goes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypedDict, cast

import numpy as np
from PIL import Image
from timm.data import resolve_data_config
from torch import nn
from torchvision.transforms import InterpolationMode

from stitchkit.errors import InputError, unknown
from stitchkit.networks.anchor import Anchor
from stitchkit.networks.timm_model import as_timm
from stitchkit.settings.fields import COLOUR_MODES, is_colour


class DataConfig(TypedDict):
    """The preparation of images under timm's names, and how they are decoded, under those of our flags."""

    input_size: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float
    crop_mode: str
    input_img_mode: str
    background: str
    exif: bool


KEYS = tuple(DataConfig.__annotations__)
_GIVEN = KEYS[1:]
"""All but the size, which the network decides."""
_DECODING = ("input_img_mode", "background", "exif")
"""Those that timm does not know."""
_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
_CHOICES = {
    "interpolation": tuple(mode.value for mode in InterpolationMode if mode != InterpolationMode.NEAREST_EXACT),
    "crop_mode": ("center", "squash", "border"),
}
"""timm's values."""


def given_data_config(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of some settings that prepare images and are set."""
    return {key: value for key in _GIVEN if (value := settings.get(key)) or value is False}


def timm_config(config: DataConfig) -> dict[str, Any]:
    """The part of a data config that timm takes."""
    return {key: value for key, value in config.items() if key not in _DECODING}


def with_decoding(config: Mapping[str, Any]) -> DataConfig:
    """A data config that says how images are decoded; older ones do not, and their images have the usual mode."""
    usual = {"input_img_mode": _MODES.get(config["input_size"][0], "RGB"), "background": "white", "exif": True}
    return cast(DataConfig, usual | {key: config[key] for key in KEYS if key not in usual or key in config})


def data_config_of(
    settings: Mapping[str, Any], input_size: tuple[int, ...], pretrained_cfg: Mapping[str, Any]
) -> DataConfig:
    """The preparation of images of size `(C, H, W)`, with a mean and a deviation for each channel.

    What is not `settings` is as in timm's `pretrained_cfg`.
    """
    check_data_config(settings, input_size[0])
    config = resolve_data_config({**settings, "input_size": tuple(input_size)}, pretrained_cfg=dict(pretrained_cfg))
    per_channel = {key: tuple(config[key]) for key in ("mean", "std")}
    for key, figures in per_channel.items():
        if len(figures) != input_size[0]:  # their average, as timm takes it, which logs a line each time
            per_channel[key] = (float(np.mean(figures)),) * input_size[0]
    known = {**pretrained_cfg, **settings}
    decoding = {key: known[key] for key in _DECODING if key in known}
    if bands_of(decoding.get("input_img_mode", "")) not in (0, input_size[0]):
        del decoding["input_img_mode"]  # weights for RGB that timm adapted to another number of channels
    return with_decoding({key: config[key] for key in KEYS if key not in _DECODING} | per_channel | decoding)


def bands_of(mode: str) -> int:
    """The number of channels of a PIL mode; 0 if it is not one of images for networks."""
    return Image.getmodebands(mode) if mode in COLOUR_MODES else 0


def unlike_images(anchors: Mapping[str, Anchor]) -> str:
    """What to say if anchors, by label, differ in mean, deviation or the decoding of images; empty if they do not.

    An SN-Net prepares all images as its last anchor does.
    """
    configs = {label: data_config_of({}, anchor.input_size, anchor.pretrained_cfg) for label, anchor in anchors.items()}
    keys = [key for key in ("mean", "std", *_DECODING) if len({dict(config)[key] for config in configs.values()}) > 1]
    if not keys:
        return ""
    listed = "; ".join(
        " ".join([label, *(str(dict(config)[key]) for key in keys)]) for label, config in configs.items()
    )
    flags = " and ".join(f"--{key.replace('_', '-')}" for key in keys)
    return (
        f"anchors expect images with different {' and '.join(keys)} ({listed}); those of {[*configs][-1]} are used for "
        f"all, unless stitchkit train gets {flags}"
    )


def check_data_config(settings: Mapping[str, object], channels: int) -> None:
    """Refuse settings that cannot prepare images with this number of channels."""
    for key, value in settings.items():
        if key not in _GIVEN:
            raise unknown("setting of images", key, _GIVEN)
        if key == "input_img_mode" and bands_of(str(value)) != channels:
            raise InputError(
                f"'{key}' of images is {value!r}, which is no PIL mode of {channels} channels; the usual one is "
                f"{_MODES.get(channels, 'missing, as images have 1 to 4 channels')}"
            )
        if key == "background" and not _fits(key, value):
            raise InputError(
                f"'{key}' of images is {value!r}, not an opaque colour; give a name such as white, or #rrggbb"
            )
        if key in _CHOICES and not _fits(key, value):
            raise unknown(f"'{key}' of images", str(value), _CHOICES[key])
        if not _fits(key, value) or (isinstance(value, list | tuple) and len(value) not in (1, channels)):
            raise InputError(f"'{key}' of images is {value!r}, which is not valid for images of {channels} channels")


def _fits(key: str, value: object) -> bool:
    if key in ("mean", "std"):
        return isinstance(value, list | tuple) and bool(value) and all(map(_is_number, value))
    if key == "crop_pct":
        return _is_number(value)
    if key == "exif":
        return isinstance(value, bool)
    if key == "input_img_mode":
        return value in COLOUR_MODES
    return is_colour(value) if key == "background" else value in _CHOICES[key]


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
    saved = content.get("image")
    if not isinstance(saved, Mapping) or not all(key in _GIVEN and _fits(key, value) for key, value in saved.items()):
        return {}
    return {key: tuple(value) if isinstance(value, list) else value for key, value in saved.items()}


def set_data_config(network: nn.Module, config: Mapping[str, Any]) -> None:
    """Set the data config of a network, or some of it, where `timm.data.resolve_model_data_config` finds it."""
    if hasattr(network, "pretrained_cfg"):  # torchvision's have none
        as_timm(network).pretrained_cfg = {**as_timm(network).pretrained_cfg, **config}

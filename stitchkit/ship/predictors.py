"""Networks that predict, with how images are prepared for them: classes of images, or a map of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
from PIL.Image import Image
from timm.data import create_transform
from torch import nn

from stitchkit.classes import trained_classes
from stitchkit.errors import InputError, one_line
from stitchkit.networks.data_config import KEYS, DataConfig
from stitchkit.settings.dense_recipe import DenseRecipe, DenseSpec
from stitchkit.ship.description import described_size, gives_features, is_dense, no_classes
from stitchkit.ship.formats import About
from stitchkit.ship.stitch_files import open_exported

T = TypeVar("T")


class Transform:
    """The preparation of images as for evaluation; a class, because loader processes pickle it."""

    def __init__(self, data_config: DataConfig):
        self._mode = "L" if data_config["input_size"][0] == 1 else "RGB"
        self._transform = create_transform(**data_config, is_training=False)

    def __call__(self, image: Image) -> torch.Tensor:
        """The input `[C, H, W]` of a network for an image."""
        found: torch.Tensor = self._transform(image.convert(self._mode))
        return found


@dataclass(frozen=True)
class Predictor:
    """A network with its data config and its class names, empty if unknown."""

    network: nn.Module
    data_config: DataConfig
    classes: Sequence[str]


@dataclass(frozen=True)
class MapPredictor:
    """A network for dense prediction with its data config and its task, which says how images are cut into windows."""

    network: nn.Module
    data_config: DataConfig
    dense: DenseRecipe


def open_predictor(path: str) -> Predictor | MapPredictor:
    """The predictor of an exported `.safetensors` or `.onnx` file."""
    network, about = open_exported(path)
    if gives_features(about):
        raise no_classes(f"'{path}'")

    def described(read: Callable[[About], T], what: str) -> T:
        try:
            return read(about)
        except Exception as error:  # anybody can write the description of an ONNX file
            raise InputError(
                f"'{path}' does not say {what} ({one_line(error)}); give a file of stitchkit export"
            ) from error

    data_config = described(_data_config, "how to prepare images")
    if is_dense(about):
        return MapPredictor(network, data_config, described(_dense_recipe, "what it predicts for each pixel"))
    return Predictor(network, data_config, (trained_classes(about) or [[]])[0])


def _data_config(about: About) -> DataConfig:
    found = cast(DataConfig, {key: about["input"][key] for key in KEYS} | {"input_size": described_size(about)})
    Transform(found)
    return found


def _dense_recipe(about: About) -> DenseRecipe:
    """The task of a file, and the settings of an evaluation that no flag changes."""
    return DenseRecipe(task=DenseSpec(**about["dense"]).task)

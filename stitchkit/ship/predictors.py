"""Networks that predict, with how images are prepared for them: classes of images, or a map of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from timm.data import create_transform
from torch import nn

from stitchkit.classes import trained_classes
from stitchkit.data.decoding import Change, Decoding, ImageSource
from stitchkit.errors import InputError, one_line
from stitchkit.networks.data_config import DataConfig, check_data_config, given_data_config, timm_config, with_decoding
from stitchkit.settings.dense_recipe import DenseRecipe, DenseSpec
from stitchkit.ship.description import described_size, gives_features, is_dense, no_classes
from stitchkit.ship.formats import About
from stitchkit.ship.stitch_files import open_exported

T = TypeVar("T")


class Transform:
    """The preparation of images as for evaluation; a class, because loader processes pickle it."""

    def __init__(self, data_config: DataConfig):
        self.decoding = Decoding.of(with_decoding(data_config))
        self._transform = create_transform(**timm_config(data_config), is_training=False)

    def __call__(self, source: ImageSource) -> torch.Tensor:
        """The input `[C, H, W]` of a network for an image."""
        return self.read(source)[0]

    def read(self, source: ImageSource) -> tuple[torch.Tensor, Change]:
        """The input of a network for an image, and what decoding did to the image."""
        image, change = self.decoding.read(source)
        return self._transform(image), change


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
            fault = f"'{path}' does not say {what} ({one_line(error)}); give a file of stitchkit export"
            raise InputError(fault) from error

    data_config = described(_data_config, "how to prepare images")
    if is_dense(about):
        return MapPredictor(network, data_config, described(_dense_recipe, "what it predicts for each pixel"))
    return Predictor(network, data_config, (trained_classes(about) or [[]])[0])


def _data_config(about: About) -> DataConfig:
    config = with_decoding({**about["input"], "input_size": described_size(about)})
    check_data_config(given_data_config(config), config["input_size"][0])
    Transform(config)
    return config


def _dense_recipe(about: About) -> DenseRecipe:
    """The task of a file, and the settings of an evaluation that no flag changes."""
    return DenseRecipe(task=DenseSpec(**about["dense"]).task)

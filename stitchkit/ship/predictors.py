"""Networks that predict classes of images, or a map of each, and how image files are read and prepared for them."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from timm.data import create_transform
from torch import nn
from torch.utils.data import DataLoader, Dataset

from stitchkit.classes import trained_classes
from stitchkit.data.decoding import Change, Decoding, ImageSource
from stitchkit.data.loader_processes import outlive_signals, usable_cores
from stitchkit.display import counted, listed
from stitchkit.errors import InputError, one_line
from stitchkit.networks.data_config import DataConfig, check_data_config, given_data_config, timm_config, with_decoding
from stitchkit.settings.dense_recipe import DenseRecipe, DenseSpec
from stitchkit.ship.description import described_size, gives_features, is_dense, no_classes
from stitchkit.ship.formats import About
from stitchkit.ship.stitch_files import open_exported
from stitchkit.ship.trained_snnet import calibrate, trained_of

_logger = logging.getLogger(__name__)

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


def predictor_of(flags: argparse.Namespace) -> Predictor | MapPredictor:
    """The exported file or the stitch that flags name."""
    if flags.exported is not None:
        return open_predictor(flags.exported)
    trained = trained_of(flags, cfg_id=flags.cfg_id)
    if not trained.model.num_classes:
        raise no_classes("the SN-Net")
    calibrate(trained, flags.cfg_id)
    net = trained.model.extract(flags.cfg_id)
    if trained.config.dense is not None:
        return MapPredictor(net, trained.data_config, trained.recipe.dense)
    return Predictor(net, trained.data_config, trained.classes)


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
        spec = described(lambda about: DenseSpec(**about["dense"]), "what it predicts for each pixel")
        return MapPredictor(network, data_config, DenseRecipe(task=spec.task))  # no flag changes how it is evaluated
    return Predictor(network, data_config, (trained_classes(about) or [[]])[0])


def _data_config(about: About) -> DataConfig:
    config = with_decoding({**about["input"], "input_size": described_size(about)})
    check_data_config(given_data_config(config), config["input_size"][0])
    Transform(config)
    return config


class Files(Dataset[tuple[int, torch.Tensor, int, str]]):
    """Image files as their number, input, `Change` and fault; the input of an unreadable one is `blank`."""

    def __init__(self, paths: Sequence[str], read: Callable[[str], tuple[torch.Tensor, Change]], blank: torch.Tensor):
        self._paths, self._read, self._blank = paths, read, blank

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> tuple[int, torch.Tensor, int, str]:
        path = self._paths[index]
        try:
            return index, *self._read(path), ""
        except Exception as error:  # decoders raise many types
            # The cause alone, without the path, which the message names.
            cause = str(error) if isinstance(error, InputError) else one_line(error.__cause__ or error)
            return index, self._blank, 0, cause.removesuffix(repr(path)).rstrip(" :")

    def loader(self, batch_size: int | None, workers: int) -> DataLoader[tuple[int, torch.Tensor, int, str]]:
        """Their loader, in batches or, without a size, one by one."""
        loader = DataLoader(self, batch_size, num_workers=min(workers, usable_cores()))  # torch warns of more
        outlive_signals(loader)
        return loader


def report_unreadable(faults: Mapping[str, str], images: int) -> None:
    """Log which of so many images cannot be read, and why the first."""
    if faults:
        message = "%d of %s cannot be read: %s; the first: %s"
        shown, first = listed([*faults]), next(iter(faults.values()))
        _logger.warning(message, len(faults), counted(images, "image"), shown, first)


def report_changes(changes: Sequence[int], decoding: Decoding) -> None:
    """Log how many of some images were changed by decoding, and how."""
    if words := decoding.described({kind: sum(bool(change & kind) for change in changes) for kind in Change}):
        _logger.info("of %s: %s", counted(len(changes), "image"), words)

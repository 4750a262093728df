"""The networks that give fragments: by name from torchvision or timm, from a checkpoint, or as modules."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torchvision
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data.loader import adapt_to_chs
from timm.models import is_model
from torch import nn

from stitchkit.errors import InputError, one_line, unknown
from stitchkit.networks.create import create_model, published_config
from stitchkit.networks.weights import load_checkpoint
from stitchkit.settings.stitch_config import AnchorSpec

PUBLISHED = ("alexnet", "densenet121", "mobilenet_v3_small", "resnet50", "vgg16")
"""The networks of the paper, torchvision's."""

_logger = logging.getLogger(__name__)
_IMAGENET = (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)

Nets = str | Sequence[str | AnchorSpec | Mapping[str, Any]] | Mapping[str, nn.Module]
"""Names or `NAME=CHECKPOINT`, also as one string with commas between; specifications as in a stitch configuration; or
modules by label."""
Loaded = dict[str, tuple[nn.Module, AnchorSpec | None]]
"""Networks by label, each with the specification it was made from."""


def load_networks(
    nets: Nets | None = None, *, pretrained: bool = True, img_size: tuple[int, int] | None = None
) -> Loaded:
    """Networks in evaluation mode, by label, each with the specification it was made from.

    Args:
        nets: What gives fragments; the five published networks by default. The published names are torchvision's,
            all other names timm's if timm has them, else torchvision's. A module has no specification.
        pretrained: Fetch the weights of names; else they are random.
        img_size: Height and width of the images, which timm's networks of one size are made for.

    Raises:
        InputError: If there is no such network, its weights are unavailable, or two have one label.
    """
    if isinstance(nets, str):
        nets = [name.strip() for name in nets.split(",") if name.strip()]
    if isinstance(nets, Mapping):
        for label, module in nets.items():
            if not isinstance(module, nn.Module):
                raise InputError(f"network '{label}' is given as {module!r}, no module; give names as a list")
        found: Loaded = {label: (module.eval(), None) for label, module in nets.items()}
    else:
        found = _created(PUBLISHED if nets is None else nets, pretrained=pretrained, img_size=img_size)
    if not found:
        raise InputError("there is no network to take fragments from; name at least one")
    return found


def _created(entries: Iterable[object], *, pretrained: bool, img_size: tuple[int, int] | None) -> Loaded:
    found: Loaded = {}
    for entry in entries:
        spec = _sized(_spec(entry), img_size)
        if spec.label in found:
            raise InputError(
                f"two networks are called '{spec.label}'; give one of them another label (in a stitch configuration)"
            )
        try:
            model = create(spec, pretrained=pretrained).eval()
        except InputError as error:
            if spec.checkpoint is None or "img_size" not in spec.kwargs:
                raise
            size = spec.kwargs["img_size"]
            raise InputError(f"{error}; the network was made for images of {size}, is the checkpoint too?") from error
        # What weights decide is kept, as the network is made again without them: how many classes there are, ...
        decided = {"num_classes"} if spec.checkpoint is not None else set()
        # ... and of torchvision's Inception networks what they do with images and whether they have auxiliary heads.
        decided |= {"transform_input", "aux_logits"} if hasattr(model, "transform_input") else set()
        kept = {name: getattr(model, name) for name in decided if hasattr(model, name)}
        spec = replace(spec, kwargs={**spec.kwargs, **kept})
        found[spec.label] = model, spec
    return found


def _sized(spec: AnchorSpec, img_size: tuple[int, int] | None) -> AnchorSpec:
    """A specification for images of a size, where timm's network has one of its own and takes no other."""
    config = published_config(spec.name) if is_model(spec.name) and spec.name not in PUBLISHED else None
    if config is None or img_size is None or not config.fixed_input_size or "img_size" in spec.kwargs:
        return spec
    if img_size == config.input_size[1:]:
        return spec
    return replace(spec, kwargs={**spec.kwargs, "img_size": img_size[0] if img_size[0] == img_size[1] else img_size})


def _spec(entry: object) -> AnchorSpec:
    if isinstance(entry, AnchorSpec):
        return entry
    if isinstance(entry, str):
        name, _, checkpoint = entry.partition("=")
        return AnchorSpec.parse({"name": name, "checkpoint": checkpoint or None})
    if isinstance(entry, nn.Module):
        raise InputError("modules need labels; give nets={'label': module, ...}")
    return AnchorSpec.parse(dict(entry) if isinstance(entry, Mapping) else entry)


def create(spec: AnchorSpec, *, pretrained: bool = False) -> nn.Module:
    """A network from its specification, that takes images normalised as ImageNet's.

    Args:
        spec: Name, arguments and checkpoint.
        pretrained: Fetch the library's weights if the specification has no checkpoint.

    Raises:
        InputError: If there is no such network, or its weights are unavailable.
    """
    names = torchvision.models.list_models(torchvision.models)
    if spec.name in PUBLISHED or (spec.name in names and not is_model(spec.name)):
        return _from_torchvision(spec, pretrained)
    if "." not in spec.name and "/" not in spec.name and not is_model(spec.name):
        from timm.models import list_models

        raise unknown("network", spec.name, [*names, *list_models()])
    model = create_model(spec.name, checkpoint=spec.checkpoint, pretrained=pretrained, **spec.kwargs)
    _take_imagenet_normalisation(model, spec.kwargs.get("in_chans", 3))
    return model


class Renormalise(nn.Module):
    """Images normalised as ImageNet's, as a network takes them that is used to another mean and standard deviation.

    Args:
        mean: What the network's images have subtracted, by channel.
        std: What they are then divided by.
        num_channels: Of the images.
    """

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float], num_channels: int):
        super().__init__()
        given, wanted = (
            torch.tensor([adapt_to_chs(tuple(figures), num_channels) for figures in pair])[..., None, None]
            for pair in (_IMAGENET, (mean, std))
        )
        self.register_buffer("scale", given[1] / wanted[1])
        self.register_buffer("shift", (given[0] - wanted[0]) / wanted[1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images `[B, C, H, W]`."""
        return x * self.scale + self.shift


def _take_imagenet_normalisation(model: nn.Module, num_channels: int) -> None:
    """Put what a timm network needs before each convolution that reads the images."""
    config: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    if (tuple(config["mean"]), tuple(config["std"])) == _IMAGENET:
        return
    found = config.get("first_conv") or ()
    places = (found,) if isinstance(found, str) else found
    layers = [model.get_submodule(place) for place in places]
    if not layers or not all(isinstance(one, nn.Conv2d) and one.in_channels == num_channels for one in layers):
        _logger.warning(
            "%s is used to images of mean %s and standard deviation %s, and does not read them by a convolution; "
            "it gets them normalised as ImageNet's, and is less accurate so",
            config.get("architecture"), config["mean"], config["std"],
        )  # fmt: skip
        return
    for place, layer in zip(places, layers, strict=True):
        before = Renormalise(config["mean"], config["std"], num_channels)
        model.set_submodule(place, nn.Sequential(before, layer))


def _from_torchvision(spec: AnchorSpec, pretrained: bool) -> nn.Module:
    fetched = pretrained and spec.checkpoint is None
    # The weights of the paper are the first ones; where there are none of that name, the only ones.
    weights = list(torchvision.models.get_model_weights(spec.name))[0] if fetched else None  # noqa: RUF015
    try:
        model: nn.Module = torchvision.models.get_model(spec.name, weights=weights, **spec.kwargs)
    except Exception as error:  # torchvision and the network raise many kinds
        raise InputError(
            f"torchvision cannot give '{spec.name}' with {dict(spec.kwargs)}: {one_line(error)}; check the "
            "arguments and the network, give a local checkpoint as NAME=FILE, or start from random weights "
            "(--no-pretrained)"
        ) from error
    if spec.checkpoint is not None:
        load_checkpoint(model, spec.checkpoint)
    return model

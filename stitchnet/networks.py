"""The networks to cut into fragments: by name from torchvision or timm, from a checkpoint, or as modules."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import replace

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data.loader import adapt_to_chs
from timm.models import is_model, list_models
from torch import hub, nn
from torchvision.models import get_model_weights

from stitchkit.errors import InputError, unknown
from stitchkit.networks.create import create_model, create_torchvision
from stitchkit.networks.hub_weights import published_config
from stitchkit.networks.timm_model import TimmModel
from stitchkit.networks.trained_with import noted
from stitchkit.networks.weights import load_checkpoint
from stitchkit.paths import check_file
from stitchkit.settings.names import torchvision_names
from stitchkit.settings.stitch_config import AnchorSpec
from stitchnet.data import crop_pct
from stitchnet.settings import PUBLISHED

_logger = logging.getLogger(__name__)
_IMAGENET = (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)

Nets = str | Sequence[str | AnchorSpec | Mapping[str, object]] | Mapping[str, nn.Module]
"""Names or `NAME=CHECKPOINT`, also as one string separated by commas; specifications as in a stitch configuration; or
modules by label."""
Loaded = dict[str, tuple[nn.Module, AnchorSpec | None]]
"""Networks by label, each with the specification it was created from."""


def load_networks(
    nets: Nets | None = None, *, pretrained: bool = True, img_size: tuple[int, int] | None = None
) -> Loaded:
    """Networks in evaluation mode, by label, for images of a height and width; by default the five published ones.

    The published names are torchvision's, all other names timm's if timm has them, else torchvision's. A module has no
    specification.
    """
    if not isinstance(nets, Mapping):
        return _created(specified(nets), pretrained=pretrained, img_size=img_size)
    _check_any(nets)
    for label, module in nets.items():
        if not isinstance(module, nn.Module):
            raise InputError(f"network '{label}' is {module!r}, not a module; names must be in a list")
    return {label: (module.eval(), None) for label, module in nets.items()}


def specified(nets: str | Sequence[object] | None = None) -> list[AnchorSpec]:
    """The specifications of networks as in `load_networks`, whose names and checkpoints exist, before any is built."""
    if isinstance(nets, str):
        nets = [name.strip() for name in nets.split(",") if name.strip()]
    specs = [_spec(entry) for entry in (PUBLISHED if nets is None else nets)]
    _check_any(specs)
    for label in (labels := [spec.label for spec in specs]):
        if labels.count(label) > 1:
            raise InputError(f"two networks are called '{label}'; rename one in a stitch configuration")
    for spec in specs:
        if not _is_torchvision(spec.name):
            published_config(spec.name)  # refuses a tag that timm does not have
        if spec.checkpoint is not None:
            check_file(spec.checkpoint, "checkpoint")
    return specs


def _check_any(nets: Sized) -> None:
    if not nets:
        raise InputError("no networks are named; name at least one")


def _created(specs: Iterable[AnchorSpec], *, pretrained: bool, img_size: tuple[int, int] | None) -> Loaded:
    loaded: Loaded = {}
    for spec in (_sized(spec, img_size) for spec in specs):
        try:
            model = create(spec, pretrained=pretrained).eval()
        except InputError as error:
            if spec.checkpoint is None or "img_size" not in spec.kwargs:
                raise
            size = spec.kwargs["img_size"]
            raise InputError(f"{error}; the network was built for images of {size}; was the checkpoint?") from error
        if (trained := noted(model)) is not None:
            trained.say_unlike(_preparation(spec, img_size))
        # `stitchnet.load` rebuilds the network without its weights, so what they decided is kept: the number of
        # classes, and whether torchvision's Inception networks transform their input and have auxiliary heads.
        decided = ["num_classes"] if spec.checkpoint is not None else []
        decided += ["transform_input", "aux_logits"] if hasattr(model, "transform_input") else []
        kept = {name: getattr(model, name) for name in decided if hasattr(model, name)}
        loaded[spec.label] = model, replace(spec, kwargs={**spec.kwargs, **kept})
    return loaded


def _preparation(spec: AnchorSpec, img_size: tuple[int, int] | None) -> dict[str, object]:
    """How images are prepared for a network, as far as its checkpoint does not decide it."""
    prepared: dict[str, object] = {"interpolation": "bicubic", "crop_mode": "center"}
    prepared |= {"input_img_mode": "RGB", "background": "white", "exif": True}
    if img_size is not None:
        prepared |= {"input_size": (spec.kwargs.get("in_chans", 3), *img_size), "crop_pct": crop_pct(img_size)}
    if _is_torchvision(spec.name):  # timm's are renormalised
        prepared |= dict(zip(("mean", "std"), _IMAGENET, strict=True))
    return prepared


def _sized(spec: AnchorSpec, img_size: tuple[int, int] | None) -> AnchorSpec:
    """A specification of a known name for images of this size, if timm's network has a fixed image size."""
    config = None if _is_torchvision(spec.name) else published_config(spec.name)
    if config is None or img_size is None or not config.fixed_input_size or "img_size" in spec.kwargs:
        return spec
    if img_size == config.input_size[1:]:
        return spec
    # Some of timm's networks accept only a single number.
    return replace(spec, kwargs={**spec.kwargs, "img_size": img_size[0] if img_size[0] == img_size[1] else img_size})


def _spec(entry: object) -> AnchorSpec:
    if isinstance(entry, str):
        name, _, checkpoint = entry.partition("=")
        return AnchorSpec.parse({"name": name, "checkpoint": checkpoint or None})
    if isinstance(entry, nn.Module):
        raise InputError("modules need labels; use nets={'label': module, ...}")
    return AnchorSpec.parse(dict(entry) if isinstance(entry, Mapping) else entry)


def _is_torchvision(name: str) -> bool:
    """Whether a network is torchvision's; an unknown name is refused."""
    if is_model(name):
        return name in PUBLISHED
    if name not in torchvision_names() and "." not in name and "/" not in name:
        raise unknown("network", name, [*torchvision_names(), *list_models()])
    return name in torchvision_names()


def create(spec: AnchorSpec, *, pretrained: bool = False) -> nn.Module:
    """A network for images normalised as ImageNet's; `pretrained` downloads its weights unless it has a checkpoint."""
    if _is_torchvision(spec.name):
        is_fetched = pretrained and spec.checkpoint is None
        # The paper used the first weights of a network; torchvision's default is the last.
        weights = next(iter(get_model_weights(spec.name))) if is_fetched else None
        before = hub.get_dir()
        hub.set_dir(get_cache_folder())
        try:
            network = create_torchvision(spec.name, spec.kwargs, weights=weights)
        finally:
            hub.set_dir(before)
        if spec.checkpoint is not None:
            load_checkpoint(network, spec.checkpoint)
        return network
    model = create_model(spec.name, checkpoint=spec.checkpoint, pretrained=pretrained, **spec.kwargs)
    _take_imagenet_normalisation(model, spec.kwargs.get("in_chans", 3))
    return model


def get_cache_folder() -> str:
    """The folder of torchvision's downloaded weights: `SN_HOME` of the environment, or torch's own cache.

    timm's are in the cache of the Hugging Face hub.
    """
    return os.environ.get("SN_HOME") or hub.get_dir()


class Renormalise(nn.Module):
    """Changes images normalised as ImageNet's to the mean and standard deviation that a network expects."""

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float], num_channels: int):
        super().__init__()
        present, wanted = (
            torch.tensor([adapt_to_chs(tuple(figures), num_channels) for figures in pair])[..., None, None]
            for pair in (_IMAGENET, (mean, std))
        )
        self.register_buffer("scale", present[1] / wanted[1])
        self.register_buffer("shift", (present[0] - wanted[0]) / wanted[1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The images `[B, C, H, W]` for the network."""
        return x * self.scale + self.shift


def _take_imagenet_normalisation(model: TimmModel, num_channels: int) -> None:
    """Insert the renormalisation that a timm network needs before each convolution that reads the images."""
    config = model.pretrained_cfg
    if (tuple(config["mean"]), tuple(config["std"])) == _IMAGENET:
        return
    first = config.get("first_conv") or ()
    paths = (first,) if isinstance(first, str) else first
    layers = [model.get_submodule(path) for path in paths]
    if not layers or not all(isinstance(layer, nn.Conv2d) and layer.in_channels == num_channels for layer in layers):
        _logger.warning(
            "%s expects images of mean %s and standard deviation %s, but does not read them with a convolution; "
            "it gets ImageNet's normalisation instead, which makes it less accurate",
            config.get("architecture"), config["mean"], config["std"],
        )  # fmt: skip
        return
    # Around the convolution, because around the network all names would get a prefix.
    for path, layer in zip(paths, layers, strict=True):
        before = Renormalise(config["mean"], config["std"], num_channels)
        model.set_submodule(path, nn.Sequential(before, layer))

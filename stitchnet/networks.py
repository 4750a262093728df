"""The networks that give fragments: by name from torchvision or timm, from a checkpoint, or as modules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torchvision
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import get_pretrained_cfg, is_model
from torch import nn

from stitchkit.config import AnchorSpec
from stitchkit.errors import InputError, unknown
from stitchkit.model.create import create_model
from stitchkit.model.weights import load_checkpoint

PUBLISHED = ("alexnet", "densenet121", "mobilenet_v3_small", "resnet50", "vgg16")
"""The networks of the paper, torchvision's."""

Nets = Sequence[str | AnchorSpec | Mapping[str, Any]] | Mapping[str, nn.Module]
"""Names, `NAME=CHECKPOINT`, specifications as in a stitch configuration, or modules by label."""
Loaded = dict[str, tuple[nn.Module, AnchorSpec | None]]
"""Networks by label, each with the specification it was made from."""


def load_networks(nets: Nets | None = None, *, pretrained: bool = True) -> Loaded:
    """Networks in evaluation mode, by label, each with the specification it was made from.

    Args:
        nets: What gives fragments; the five published networks by default. The published names are torchvision's,
            all other names timm's if timm has them, else torchvision's. A module has no specification.
        pretrained: Fetch the weights of names; else they are random.

    Raises:
        InputError: If there is no such network, its weights cannot be had, or two have one label.
    """
    if isinstance(nets, Mapping):
        found: Loaded = {label: (module.eval(), None) for label, module in nets.items()}
    else:
        found = _created(PUBLISHED if nets is None else nets, pretrained=pretrained)
    if not found:
        raise InputError("there is no network to take fragments from; name at least one")
    return found


def _created(entries: Iterable[object], *, pretrained: bool) -> Loaded:
    found: Loaded = {}
    for entry in entries:
        spec = _spec(entry)
        if spec.label in found:
            raise InputError(f"two networks are called '{spec.label}'; give one of them another label")
        model = create(spec, pretrained=pretrained).eval()
        if spec.checkpoint is not None and hasattr(model, "num_classes"):  # as many as the file has
            spec = replace(spec, kwargs={**spec.kwargs, "num_classes": model.num_classes})
        found[spec.label] = model, spec
    return found


def _spec(entry: object) -> AnchorSpec:
    if isinstance(entry, AnchorSpec):
        return entry
    if isinstance(entry, str):
        name, _, checkpoint = entry.partition("=")
        return AnchorSpec(name, checkpoint=checkpoint or None)
    if isinstance(entry, nn.Module):
        raise InputError("modules need labels; give nets={'label': module, ...}")
    return AnchorSpec.parse(dict(entry) if isinstance(entry, Mapping) else entry)


def create(spec: AnchorSpec, *, pretrained: bool = False) -> nn.Module:
    """A network from its specification.

    Args:
        spec: Name, arguments and checkpoint.
        pretrained: Fetch the library's weights if the specification has no checkpoint.

    Raises:
        InputError: If there is no such network, or its weights cannot be had.
    """
    names = torchvision.models.list_models(torchvision.models)
    if spec.name in PUBLISHED or (spec.name in names and not is_model(spec.name)):
        return _from_torchvision(spec, pretrained)
    if "." not in spec.name and "/" not in spec.name and not is_model(spec.name):
        from timm.models import list_models

        raise unknown("network", spec.name, [*names, *list_models()])
    return create_model(spec.name, checkpoint=spec.checkpoint, pretrained=pretrained, **spec.kwargs)


def normalised_otherwise(specs: Mapping[str, AnchorSpec | None]) -> list[str]:
    """Labels of timm's networks that are used to images normalised in another way than ImageNet's.

    Args:
        specs: How networks are made, by label.
    """
    found = []
    for label, spec in specs.items():
        config = get_pretrained_cfg(spec.name) if spec is not None and is_model(spec.name) else None
        if config is not None and (config.mean, config.std) != (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD):
            found.append(label)
    return found


def _from_torchvision(spec: AnchorSpec, pretrained: bool) -> nn.Module:
    fetched = pretrained and spec.checkpoint is None
    # The weights of the paper are the first ones; where there are none of that name, the only ones.
    weights = list(torchvision.models.get_model_weights(spec.name))[0] if fetched else None  # noqa: RUF015
    try:
        model: nn.Module = torchvision.models.get_model(spec.name, weights=weights, **spec.kwargs)
    except Exception as error:  # torchvision and the network raise many kinds
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"torchvision cannot give '{spec.name}' with {dict(spec.kwargs)}: {reason}; check the arguments and the "
            "network, give a local checkpoint as NAME=FILE, or start from random weights (--no-pretrained)"
        ) from error
    if spec.checkpoint is not None:
        load_checkpoint(model, spec.checkpoint)
    return model

"""What a person names an anchor by: a timm model, a checkpoint of one's own, or a network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from timm.layers import to_2tuple
from timm.models import is_model
from torch import nn

from stitchkit.errors import InputError, prefixed
from stitchkit.networks.anchor import Anchor
from stitchkit.networks.create import create_anchor
from stitchkit.networks.families import anchor_of
from stitchkit.networks.hub_weights import published_config
from stitchkit.networks.trained_with import TrainedWith
from stitchkit.networks.weights import read_checkpoint
from stitchkit.settings.names import AnchorText, read_anchor
from stitchkit.settings.schema import ModelArguments, parse
from stitchkit.settings.stitch_config import AnchorSpec

AnchorSource = AnchorSpec | nn.Module
"""What an anchor is made of: the specification of a model, or a network of one's own."""
_OF_WEIGHTS = ("pretrained", "checkpoints")
_HEEDED = ("img_size", "in_chans", "num_classes")
"""Options that do not change a network, but say how it is used."""


def anchor_source(anchor: str | Path | Mapping[str, object] | AnchorSource) -> AnchorSource:
    """The source of an anchor: from text as `--anchors` takes it, the file of a checkpoint, or what is given."""
    if isinstance(anchor, Mapping):
        return AnchorSpec.parse(anchor)
    if isinstance(anchor, type):
        raise InputError(f"{anchor.__name__} is a class; give a network, such as {anchor.__name__}(...)")
    if isinstance(anchor, AnchorSpec | nn.Module):
        return anchor
    if not isinstance(anchor, str | Path):
        raise InputError(
            f"an anchor is {anchor!r:.60}, of type {type(anchor).__name__}; give a name, the file of a checkpoint, a "
            "specification or a network"
        )
    text = read_anchor(str(anchor))
    with prefixed(f"anchor '{anchor}': "):
        name, kwargs = (text.name, {}) if text.name else _model_of(text.file)
        if (config := published_config(name)) is not None and "." not in name and config.tag and not text.file:
            name = f"{name}.{config.tag}"  # another version of timm may have another default
    label = AnchorText(name, text.file).label
    return AnchorSpec(name=name, label=label, kwargs=kwargs, checkpoint=text.file or None)


def make_anchor(source: AnchorSource, label: str, **options: Any) -> Anchor:
    """The anchor of a source; options as in `create_anchor`; networks heed only size, channels and classes."""
    if isinstance(source, AnchorSpec):
        return create_anchor(source, **options)
    settings = {name: value for name, value in options.items() if value is not None and name not in _OF_WEIGHTS}
    if unheeded := [name for name in settings if name not in _HEEDED]:
        raise InputError(
            f"anchor '{label}' is already a network, so {', '.join(unheeded)} cannot apply; build it with them"
        )
    with prefixed(f"anchor '{label}': "):
        parse(ModelArguments, settings, "options")
    input_size = None
    if settings.keys() & {"img_size", "in_chans"}:
        known: Mapping[str, Any] = getattr(source, "pretrained_cfg", None) or {}
        channels, *sides = known.get("input_size", (3, 224, 224))
        input_size = (settings.get("in_chans", channels), *to_2tuple(settings.get("img_size", sides)))
    return anchor_of(source, label=label, input_size=input_size, num_classes=settings.get("num_classes"))


def _model_of(path: str) -> tuple[str, dict[str, Any]]:
    """The name and the arguments of the timm model that a checkpoint of a training is of."""
    content = read_checkpoint(path)
    if content.get("stitch_config"):
        raise InputError("it is an SN-Net, not a model; continue its training with --initial-checkpoint")
    name, trained = content.get("arch"), TrainedWith.read(content, path)
    if not isinstance(name, str) or not is_model(name):
        raise InputError("it does not name its timm model; write NAME=FILE")
    try:
        kwargs = json.loads(json.dumps(content.get("model_kwargs") or {}))
        assert isinstance(kwargs, dict)
    except (AssertionError, TypeError, ValueError) as error:
        raise InputError("the arguments of its model are not plain data; write NAME=FILE") from error
    if trained.classes:
        kwargs = {"num_classes": len(trained.classes[0]), **kwargs}
    if (size := trained.input_size) is not None:
        kwargs = {"img_size": size[1] if size[1] == size[2] else [*size[1:]], **kwargs}
        kwargs |= {"in_chans": size[0]} if size[0] != 3 else {}
    return name, kwargs

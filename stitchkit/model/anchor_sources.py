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
from stitchkit.networks.weights import read_checkpoint
from stitchkit.settings.anchor_text import AnchorText, read_anchor
from stitchkit.settings.stitch_config import AnchorSpec

AnchorSource = AnchorSpec | nn.Module
"""What an anchor is made of: the specification of a model, or a network of one's own."""


def anchor_source(given: str | Path | Mapping[str, object] | AnchorSource) -> AnchorSource:
    """The source of an anchor: from text as `--anchors` takes it, the file of a checkpoint, or what is given.

    Raises:
        InputError: If timm has no such model, or a checkpoint does not say which model it is of.
    """
    if isinstance(given, Mapping):
        return AnchorSpec.parse(given)
    if isinstance(given, type):
        raise InputError(f"{given.__name__} is a class; give a network, such as {given.__name__}(...)")
    if not isinstance(given, str | Path):
        return given
    text = read_anchor(str(given))
    with prefixed(f"anchor '{given}': "):
        name, kwargs = (text.name, {}) if text.name else _model_of(text.file)
        if (config := published_config(name)) is not None and "." not in name and config.tag and not text.file:
            name = f"{name}.{config.tag}"  # another version of timm may have another default
    label = AnchorText(name, text.file).label
    return AnchorSpec(name=name, label=label, kwargs=kwargs, checkpoint=text.file or None)


def make_anchor(source: AnchorSource, label: str, **options: Any) -> Anchor:
    """The anchor of a source; options as in `create_anchor`, of which networks heed size and classes."""
    if isinstance(source, AnchorSpec):
        return create_anchor(source, **options)
    sides = to_2tuple(options.get("img_size"))
    size = None if sides[0] is None else (options.get("in_chans") or 3, *sides)
    return anchor_of(source, label=label, input_size=size, num_classes=options.get("num_classes"))


def _model_of(path: str) -> tuple[str, dict[str, Any]]:
    """The name and the arguments of the timm model that a checkpoint of a training is of."""
    content = read_checkpoint(path)
    if content.get("stitch_config"):
        raise InputError("it is an SN-Net, not a model; continue its training by --initial-checkpoint")
    name, classes, size = (content.get(key) for key in ("arch", "classes", "input_size"))
    if not isinstance(name, str) or not is_model(name):
        raise InputError("it does not say which timm model it is of; write NAME=FILE")
    try:
        kwargs = json.loads(json.dumps(content.get("model_kwargs") or {}))
        assert isinstance(kwargs, dict)
    except (AssertionError, TypeError, ValueError) as error:
        raise InputError("the arguments of its model are not plain data; write NAME=FILE") from error
    if isinstance(classes, list) and classes:
        kwargs = {"num_classes": len(classes), **kwargs}
    if isinstance(size, list) and len(size) == 3 and all(type(length) is int for length in size):
        kwargs = {"img_size": size[1] if size[1] == size[2] else size[1:], **kwargs}
        kwargs |= {"in_chans": size[0]} if size[0] != 3 else {}
    return name, kwargs

"""Anchors and SN-Nets by name: from timm's registry, with timm's or local weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from timm.models import is_model, list_models
from torch import nn

from stitchkit.config import AnchorSpec, StitchConfig
from stitchkit.errors import InputError, unknown
from stitchkit.model.anchor import Anchor, view
from stitchkit.model.snnet import SNNet
from stitchkit.model.weights import load_checkpoint
from stitchkit.routes import StitchSpace


def create_model(
    name: str, *, checkpoint: str | Path | None = None, pretrained: bool = False, **kwargs: Any
) -> nn.Module:
    """A timm model with its weights.

    Args:
        name: timm's name, with or without a tag.
        checkpoint: A local file with the weights; it excludes `pretrained`.
        pretrained: Fetch timm's weights for the name.
        kwargs: Arguments of `timm.create_model`; those that are None are left out.

    Raises:
        InputError: If timm has no such model, refuses an argument, or cannot fetch the weights.
    """
    if not name.startswith(("hf-hub:", "hf_hub:", "local-dir:")) and not is_model(name):
        raise unknown("timm model", name.split(".")[0], list_models())
    kwargs = {key: value for key, value in kwargs.items() if value is not None}
    try:
        model: nn.Module = timm.create_model(name, pretrained=pretrained and checkpoint is None, **kwargs)
    except (TypeError, AssertionError) as error:
        raise InputError(f"timm cannot build '{name}' with {kwargs}: {error}") from error
    except Exception as error:  # the hub client raises many kinds; all of them mean "not to be had"
        if not pretrained:
            raise
        raise InputError(
            f"pretrained weights of '{name}' could not be had ({error}); check the tag and the network, "
            "or give a local checkpoint"
        ) from error
    if checkpoint is not None:
        load_checkpoint(model, checkpoint)
    return model


def create_anchor(spec: AnchorSpec, *, pretrained: bool = True, **overrides: Any) -> Anchor:
    """The anchor of a specification.

    Args:
        spec: Name, label, arguments and checkpoint.
        pretrained: Load its weights: the checkpoint where the specification has one, else timm's. Without, the
            weights are random.
        overrides: Further arguments of `timm.create_model`, stronger than those of the specification.

    Raises:
        InputError: If the model cannot be built, loaded or viewed as steps.
    """
    checkpoint = spec.checkpoint if pretrained else None
    kwargs = {**spec.kwargs, **{key: value for key, value in overrides.items() if value is not None}}
    try:
        model = create_model(spec.name, checkpoint=checkpoint, pretrained=pretrained, **kwargs)
    except InputError as error:
        raise InputError(f"anchor '{spec.label}': {error}") from error
    return view(model, label=spec.label, source=checkpoint or (spec.name if pretrained else "random"))


def create_snnet(
    config: StitchConfig | Mapping[str, Any] | str | Path, *, pretrained: bool = False, **overrides: Any
) -> SNNet:
    """The SN-Net of a configuration.

    Stitching layers start random; `fit_stitching_layers` or a checkpoint sets them.

    Args:
        config: A configuration, its content, or the path of its file.
        pretrained: Load the anchors' weights, from the network unless the configuration names local files.
        overrides: Arguments of `timm.create_model` for all anchors, such as `num_classes=10` or `img_size=384`.

    Raises:
        InputError: If the configuration or an anchor cannot be used, or the anchors cannot be stitched.
    """
    if isinstance(config, str | Path):
        config = StitchConfig.load(config)
    elif not isinstance(config, StitchConfig):
        config = StitchConfig.parse(config)
    anchors = [create_anchor(spec, pretrained=pretrained, **overrides) for spec in config.anchors]
    space = StitchSpace.build(anchors, config.rule)
    return SNNet(anchors, space, stitched_final_norm=config.stitched_final_norm)

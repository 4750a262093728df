"""SN-Nets from their configurations."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from stitchkit.model.snnet import SNNet
from stitchkit.networks.anchor import Anchor
from stitchkit.networks.create import create_anchor
from stitchkit.networks.data_config import given_data_config
from stitchkit.routes import StitchSpace
from stitchkit.settings.stitch_config import StitchConfig


def create_snnet(
    config: StitchConfig | Mapping[str, object] | str | Path,
    *,
    pretrained: bool = False,
    checkpoints: bool = True,
    **overrides: Any,
) -> SNNet:
    """The SN-Net of a configuration.

    Stitching layers are random; `fit_stitching_layers` or a checkpoint sets them.

    Args:
        config: A configuration, its content, or the path of its file.
        pretrained: Download timm's weights of the anchors for which the configuration names no local `checkpoint`.
        checkpoints: Load these local files. False is for a network whose weights do not matter, or all come from
            another file.
        overrides: Arguments of `timm.create_model` for all anchors, such as `num_classes=10` or `img_size=384`.

    Raises:
        InputError: If the configuration or an anchor is invalid, or the anchors cannot be stitched.
    """
    config = read_config(config)
    if pretrained or (checkpoints and any(spec.checkpoint for spec in config.anchors)):
        with torch.device("meta"):  # find anchors that cannot be stitched before downloading weights
            _assemble(config, pretrained=False, checkpoints=False, **overrides)
    return _assemble(config, pretrained=pretrained, checkpoints=checkpoints, **overrides)


def read_config(config: StitchConfig | Mapping[str, object] | str | Path) -> StitchConfig:
    """A configuration from itself, its content, or the path of its file."""
    if isinstance(config, StitchConfig):
        return config
    return StitchConfig.load(config) if isinstance(config, str | Path) else StitchConfig.parse(config)


def anchors_and_space(config: StitchConfig, **options: Any) -> tuple[list[Anchor], StitchSpace]:
    """The anchors and the stitch space of an SN-Net; options as in `create_anchor`."""
    anchors = [create_anchor(spec, **options) for spec in config.anchors]
    return anchors, StitchSpace.build(anchors, config.make_rule())


def _assemble(config: StitchConfig, **options: Any) -> SNNet:
    parts = anchors_and_space(config, **options)
    return SNNet(*parts, stitched_final_norm=config.stitched_final_norm, image=given_data_config(config.recipe))

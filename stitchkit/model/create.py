"""SN-Nets from their configurations."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from stitchkit.errors import InputError
from stitchkit.model.anchor_sources import AnchorSource, anchor_source, make_anchor
from stitchkit.model.layer import StitchLayer
from stitchkit.model.plan import Plan, plan_anchors
from stitchkit.model.snnet import SNNet
from stitchkit.model.transforms import transform_of
from stitchkit.networks.anchor import Anchor
from stitchkit.networks.create import create_anchor
from stitchkit.networks.data_config import given_data_config, unlike_normalisation
from stitchkit.routes import StitchSpace
from stitchkit.settings.stitch_config import StitchConfig

_logger = logging.getLogger(__name__)


def create_snnet(
    config: StitchConfig | Mapping[str, object] | str | Path | None = None,
    *,
    anchors: Sequence[str | Path | Mapping[str, object] | AnchorSource] = (),
    pretrained: bool = False,
    checkpoints: bool = True,
    **overrides: Any,
) -> SNNet:
    """The SN-Net of a configuration, or of some anchors.

    Stitching layers are random; `fit_stitching_layers` or a checkpoint sets them.

    Args:
        config: A configuration, its content, the path of its file, or its short name, such as `deit_ti_s_b`.
        anchors: In place of it, timm names, checkpoints as `--anchors` takes them, specifications, or networks of your
            own, in any order. Where they are joined follows from their structure, and is logged.
        pretrained: Download timm's weights of the anchors for which the configuration names no local `checkpoint`.
        checkpoints: Load these local files. False is for a network whose weights do not matter, or all come from
            another file.
        overrides: Arguments of `timm.create_model` for all anchors, such as `num_classes=10` or `img_size=384`. With
            `num_classes=0` the anchors have no classifier, and a stitch gives the pooled feature of its end.

    Raises:
        InputError: If the configuration or an anchor is invalid, or the anchors cannot be stitched.
    """
    if (config is None) != bool(anchors):
        raise InputError("give either a configuration or anchors, such as anchors=['resnet18', 'resnet50']")
    if isinstance(anchors, str):
        names = [name.strip() for name in anchors.split(",")]
        raise InputError(f"anchors is the text '{anchors}', not a list; write anchors={names}")
    if anchors:
        plan = plan_anchors([anchor_source(given) for given in anchors], **overrides)
        for line in plan.lines:
            _logger.info("%s", line)
        model = _of_plan(plan, pretrained=pretrained, checkpoints=checkpoints, **overrides)
        if words := unlike_normalisation(model.views):
            _logger.warning("%s", words)
        return model
    assert config is not None
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
    return anchors, config.space_of(anchors)


def _of_plan(plan: Plan, **options: Any) -> SNNet:
    anchors = [make_anchor(source, label, **options) for label, source in plan.sources.items()]
    return SNNet(anchors, StitchSpace.build(anchors, plan.rule))


def _assemble(config: StitchConfig, **options: Any) -> SNNet:
    parts = anchors_and_space(config, **options)
    return SNNet(*parts, **snnet_options(config), image=given_data_config(config.recipe))


def snnet_options(config: StitchConfig) -> dict[str, Any]:
    """Arguments of `SNNet` that a configuration gives beside its anchors and space."""
    assert config.layer is not None
    return {
        "stitched_final_norm": config.stitched_final_norm,
        "layer": partial(StitchLayer, transform=transform_of(config.layer, config.lora_r or 0)),
        "updates": config.anchor_lora_r,
    }

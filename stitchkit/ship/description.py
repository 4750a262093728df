"""The description of an exported stitch: enough to rebuild its network, and to prepare images for it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch.nn.modules.batchnorm import _BatchNorm

from stitchkit.errors import InputError, one_line
from stitchkit.model.create import dense_options
from stitchkit.model.heads.route_head import DEPTH, LOGITS
from stitchkit.model.layer import StitchLayer, transform_of
from stitchkit.model.route_network import ExtractedRoute
from stitchkit.model.snnet import SNNet
from stitchkit.networks.create import create_anchor
from stitchkit.networks.data_config import check_data_config, given_data_config
from stitchkit.networks.hub_weights import is_architecture
from stitchkit.routes import Stitch, StitchSpace
from stitchkit.settings.dense_recipe import DenseSpec
from stitchkit.settings.recipe import ModelRecipe
from stitchkit.settings.schema import image_size
from stitchkit.settings.stitch_config import AnchorSpec
from stitchkit.ship.formats import About

_MOST_OUTPUTS = 100_000
FORMAT = "stitchkit stitch 1"
"""The format that every description names."""


def portable(spec: AnchorSpec, model: SNNet, *, global_pool: str | None = None) -> dict[str, object]:
    """An anchor's specification as built into an SN-Net, independent of weight files and downloads."""
    channels, height, width = model.input_size
    kwargs = {
        **spec.kwargs,
        "num_classes": model.views[spec.label].num_classes,
        "img_size": height if height == width else [height, width],
    }
    if channels != 3:
        kwargs["in_chans"] = channels
    if global_pool:
        kwargs["global_pool"] = global_pool
    name = (
        spec.name
        if is_architecture(spec.name)
        else model.views[spec.label].pretrained_cfg.get("architecture", spec.name)
    )
    return {"name": name, "label": spec.label, "kwargs": kwargs}


def gives_features(about: About) -> bool:
    """Whether a described network gives features, neither classes nor depths."""
    return output_name(about) not in (LOGITS, DEPTH)


def output_name(about: About) -> str:
    """The name of a described network's first output; older descriptions, which do not say it, are of logits."""
    output = about.get("output")
    return str(output.get("name", LOGITS)) if isinstance(output, Mapping) else LOGITS


def is_dense(about: About) -> bool:
    """Whether a described network predicts for each pixel."""
    return about.get("dense") is not None


def no_classes(what: str) -> InputError:
    """The error for a network that is to predict, but gives features."""
    return InputError(
        f"{what} gives features, not classes; give a network that was trained for classes, as stitchkit train does "
        "(--num-classes N if the data do not name them)"
    )


def build(about: Mapping[str, Any]) -> ExtractedRoute:
    """The described network with random weights; nothing is downloaded, and only the anchors it needs are built."""
    if about.get("format") != FORMAT:
        raise InputError(f"its format is {about.get('format')!r}, not '{FORMAT}'; export it again")
    try:
        stitch = Stitch.parse(about["stitch"])
        specs = [local(AnchorSpec.parse(entry)) for entry in about["anchors"]]
        final_norm, image = bool(about["stitched_final_norm"]), given_data_config(about["input"])
        eps = ModelRecipe(bn_eps=about["bn_eps"]).bn_eps
        described_size(about)
        dense = None if about.get("dense") is None else DenseSpec(**about["dense"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"its description is damaged ({one_line(error)}); export it again") from error
    if (kind := about.get("layer", "linear")) not in ("linear", "mlp"):
        raise InputError(f"its stitching layers are {kind!r}, not 'linear' or 'mlp'; export it again")
    anchors = [create_anchor(spec, pretrained=False) for spec in specs]
    space = StitchSpace({0: stitch}, {joint: (number,) for number, joint in enumerate(stitch.joints)}, 0)
    depths = {anchor.label: sum(anchor.depths) for anchor in anchors}
    if any(segment.stop > depths.get(segment.anchor, 0) for segment in stitch.segments):
        raise InputError(f"its route {stitch} does not fit its anchors of {depths} blocks; export it again")
    # A space of only this stitch, to extract the network like any other, with the same parameter names.
    check_data_config(image, anchors[-1].input_size[0])
    layer = partial(StitchLayer, transform=transform_of(kind, 0))
    options: dict[str, Any] = {"stitched_final_norm": final_norm, "layer": layer, "image": image}
    if dense is not None:
        options |= dense_options(dense, _width(about), anchors)
    net = SNNet(anchors, space, **options).extract(0)
    for norm in net.modules():
        if isinstance(norm, _BatchNorm) and eps is not None:
            norm.eps = eps
    return net


def described_size(about: About) -> tuple[int, int, int]:
    """The size of an image that a description says, `(C, H, W)`."""
    return image_size(about["input"]["input_size"])


def _width(about: Mapping[str, Any]) -> int:
    output = about.get("output")
    width = output.get("width") if isinstance(output, Mapping) else None
    if type(width) is not int or not 1 <= width <= _MOST_OUTPUTS:
        raise InputError(f"its description says {width!r} outputs; export it again")
    return width


def local(spec: AnchorSpec) -> AnchorSpec:
    """A specification from a file, if it names only an architecture."""
    if spec.checkpoint is not None or not is_architecture(spec.name):
        source = spec.checkpoint or spec.name
        raise InputError(f"anchor '{spec.label}' of the file would be read from '{source}'; refused")
    return spec

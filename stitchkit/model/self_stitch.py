"""Self-stitches: an anchor cut in the middle and joined to itself, which shows what a joint alone loses."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch

from stitchkit.model.layer import StitchLayer
from stitchkit.model.snnet import SNNet
from stitchkit.model.solve import fit_stitching_layers
from stitchkit.networks.anchor import Anchor
from stitchkit.networks.layout import Layout
from stitchkit.routes import Segment, Stitch, StitchSpace


def self_stitch(
    anchor: Anchor, *, stitched_final_norm: bool = True, layer: Callable[[Layout, Layout], StitchLayer] = StitchLayer
) -> SNNet:
    """An SN-Net of one stitch: the first half of an anchor's blocks, a stitching layer, the other half.

    It shares the anchor's weights; its layer is random until it is fitted. Its `cfg_id` is 0, and its two segments
    have the labels `T` and `T#self`.

    Args:
        anchor: The anchor T.
        stitched_final_norm: As in `SNNet`, and so is `layer`.

    Source: the control of final feature matching.
    """
    again = copy.copy(anchor)
    again.label = f"{anchor.label}#self"
    depth = sum(anchor.depths)
    stitch = Stitch((Segment(anchor.label, 0, depth // 2), Segment(again.label, depth // 2, depth)))
    space = StitchSpace({0: stitch}, dict.fromkeys(stitch.joints, (0,)), 0)
    return SNNet([anchor, again], space, stitched_final_norm=stitched_final_norm, layer=layer)


def fitted_self_stitch(
    anchor: Anchor, batches: Iterable[torch.Tensor], *, method: str, damping: float, **options: Any
) -> SNNet:
    """A self-stitch, on the anchor's device, whose layer is fitted as `fit_stitching_layers` does.

    Further options are those of `self_stitch`.
    """
    model = self_stitch(anchor, **options)
    weights = next(anchor.model.parameters())
    model.to(weights.device, weights.dtype)
    fit_stitching_layers(model, batches, method=method, damping=damping)
    return model

"""The dissimilarity of the two representations at a joint."""

from __future__ import annotations

from collections import defaultdict

import torch

from stitchkit.choose.chooser import Batches, joint_routes
from stitchkit.model.similarity import alignment, hsic
from stitchkit.model.snnet import SNNet
from stitchkit.networks.layout import as_rows
from stitchkit.routes import Joint


@torch.no_grad()
def cka(model: SNNet, batches: Batches, *, seed: int) -> dict[Joint, float]:  # noqa: ARG001
    """1 minus linear CKA of the front's output, at the positions of the end, and the end's input.

    Sums over batches make the score of all images, each centred in its batch.
    """
    sums: dict[Joint, torch.Tensor] = defaultdict(lambda: torch.zeros(3, dtype=torch.float64))
    for images, _ in batches:
        features = {label: anchor.features(images) for label, anchor in model.views.items()}
        for joint in joint_routes(model):
            layer = model.layer(joint)
            end = layer.layouts[1].channel_dim
            x = as_rows(layer.fit(features[joint.front][joint.front_block + 1]), end)
            y = as_rows(features[joint.end][joint.end_block], end)
            sums[joint] += torch.tensor([hsic(x, y), hsic(x, x), hsic(y, y)], dtype=torch.float64)
    return {joint: 1 - alignment(*values.tolist()) for joint, values in sums.items()}

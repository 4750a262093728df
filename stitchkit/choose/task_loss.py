"""The loss of a stitched network without training."""

from __future__ import annotations

from itertools import islice

import torch
from torch.nn import functional as F

from stitchkit.choose.chooser import Batches, joint_routes
from stitchkit.errors import InputError
from stitchkit.model.snnet import SNNet
from stitchkit.model.solve import fit_stitching_layers
from stitchkit.routes import Joint


@torch.no_grad()
def task_loss(model: SNNet, batches: Batches, *, seed: int) -> dict[Joint, float]:  # noqa: ARG001
    """Mean cross-entropy of the route through a joint alone, after the closed-form fit of its stitching layer.

    The layers are fitted on the first half of the batches, and the losses are those of the second half.
    """
    if not model.num_classes:
        raise InputError(
            "task-loss needs classifiers, which these anchors do not have; choose by cka or klas-label-free"
        )
    if len(batches) < 2:
        raise InputError(f"task-loss needs two batches, to fit and to judge, but there is {len(batches)}; give more")
    stream = iter(batches)
    fit_stitching_layers(model, (images for images, _ in islice(stream, len(batches) // 2)))
    routes, sums, count = joint_routes(model), dict.fromkeys(joint_routes(model), 0.0), 0
    for images, labels in stream:
        if (largest := int(labels.max())) >= model.num_classes:
            raise InputError(
                f"label {largest} is beyond the {model.num_classes} classes of the anchors; choose by klas, whose "
                "probes learn the classes of the data, or give anchors that know them"
            )
        logits = model.forward_all(images, routes.values())
        for joint, cfg_id in routes.items():
            sums[joint] += float(F.cross_entropy(logits[cfg_id].double(), labels, reduction="sum"))
        count += len(images)
    return {joint: total / count for joint, total in sums.items()}

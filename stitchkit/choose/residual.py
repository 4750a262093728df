"""The least-squares residual of a joint."""

from __future__ import annotations

from stitchkit.choose.chooser import Batches, joint_routes
from stitchkit.model.snnet import SNNet
from stitchkit.model.solve import fit_stitching_layers
from stitchkit.routes import Joint


def residual(model: SNNet, batches: Batches, *, seed: int) -> dict[Joint, float]:  # noqa: ARG001
    """The share of the energy of the end's input that the closed-form fit of a stitching layer does not reproduce."""
    left = fit_stitching_layers(model, (images for images, _ in batches))
    return {joint: left[joint] for joint in joint_routes(model)}

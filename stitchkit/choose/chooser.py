"""What a chooser is: a score for each joint, from the anchors and a few images, without training a stitch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

from stitchkit.data.batches import Batch
from stitchkit.model.snnet import SNNet
from stitchkit.routes import Joint


class Batches(Protocol):
    """Images `[B, C, H, W]` on the model's device with labels `[B]`, `NO_CLASS` for images without; read once.

    A list of such pairs will do.
    """

    def __len__(self) -> int:
        """Number of batches."""

    def __iter__(self) -> Iterator[Batch]:
        """Read them."""


class JointScore(Protocol):
    """Scores the joints of an SN-Net; lower is better, and 0 the best that can be."""

    def __call__(self, model: SNNet, batches: Batches, *, seed: int) -> dict[Joint, float]:
        """A score for each of `joint_routes(model)`.

        Args:
            model: In evaluation mode. Its stitching layers are random, and may be set; its anchors must not change.
            batches: Some images.
            seed: Decides whatever is drawn.
        """


class Chooser(NamedTuple):
    """A way to score joints.

    Args:
        score: Computes the scores.
        needs_labels: Whether images without labels are refused.
    """

    score: JointScore
    needs_labels: bool = False


def joint_routes(model: SNNet) -> dict[Joint, int]:
    """The joints to choose from, each with the `cfg_id` of the stitch that passes through it alone."""
    stitches = model.space.stitches.items()
    return {stitch.joints[0]: cfg_id for cfg_id, stitch in stitches if len(stitch.joints) == 1}

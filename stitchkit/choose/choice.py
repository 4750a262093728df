"""The choice of joints by a score, at every cost."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stitchkit.measure.profile import Profiler
from stitchkit.model.snnet import SNNet
from stitchkit.routes import Joint


def joint_routes(model: SNNet) -> dict[Joint, int]:
    """The joints to choose from, each with the `cfg_id` of the stitch that passes through it alone."""
    stitches = model.space.stitches.items()
    return {stitch.joints[0]: cfg_id for cfg_id, stitch in stitches if len(stitch.joints) == 1}


@dataclass(frozen=True)
class Candidate:
    """A joint, the stitch that passes through it alone, and the number of its part of the FLOPs between its anchors."""

    joint: Joint
    stitch: str
    flops: int
    bucket: int


def candidates(model: SNNet, buckets: int) -> list[Candidate]:
    """All joints to choose from; between any two anchors, the range of FLOPs is split into equal buckets.

    A joint whose stitch costs less or more than both anchors belongs to the first or the last one.
    """
    profiler = Profiler(model)
    anchors = [model.space[cfg_id] for cfg_id in range(model.space.num_anchors)]
    alone = {anchor.segments[0].anchor: profiler.cost(anchor).flops for anchor in anchors}
    joints = []
    for joint, cfg_id in joint_routes(model).items():
        low, high = sorted((alone[joint.front], alone[joint.end]))
        flops = profiler.cost(cfg_id).flops
        number = (flops - low) * buckets // max(high - low, 1)  # in whole numbers, so that limits are exact
        joints.append(Candidate(joint, model.space[cfg_id].name, flops, min(max(number, 0), buckets - 1)))
    return joints


def least_scores(joints: Sequence[Candidate], scores: Mapping[Joint, float]) -> dict[Joint, float]:
    """For each joint the lowest score in its bucket between the same anchors, in the same direction."""
    groups: dict[tuple[str, str, int], list[Joint]] = defaultdict(list)
    for candidate in joints:
        groups[candidate.joint.front, candidate.joint.end, candidate.bucket].append(candidate.joint)
    return {joint: min(scores[other] for other in group) for group in groups.values() for joint in group}


def keep(joints: Sequence[Candidate], scores: Mapping[Joint, float], tau: float) -> list[Joint]:
    """The joints whose score is at most 1 + `tau` times the lowest of their bucket, in their order.

    Source: KLAS, for Gamma.
    """
    least = least_scores(joints, scores)
    return [joint for joint in (each.joint for each in joints) if scores[joint] <= (1 + tau) * least[joint]]

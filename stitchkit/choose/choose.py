"""The choice of joints, and of a pair of anchors, as a new configuration."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path

from stitchkit.choose.choice import Candidate, candidates, check_scores, keep, least_scores
from stitchkit.choose.chooser import Batches
from stitchkit.choose.choosers import CHOOSERS
from stitchkit.choose.klas import anchor_thetas
from stitchkit.display import aligned, quantity
from stitchkit.errors import InputError, unknown
from stitchkit.files import write_text
from stitchkit.model.snnet import SNNet
from stitchkit.networks.mode import evaluating
from stitchkit.paths import paths_for_file
from stitchkit.routes import Joint
from stitchkit.settings.stitch_config import StitchConfig

_SHOWN = 20
"""Joints in a table."""


@dataclass(frozen=True)
class ChosenJoints:
    """What was chosen, and why.

    Args:
        candidates: All joints that there were.
        scores: By the name of the chooser; the first chose.
        kept: In the order of the candidates.
    """

    candidates: Sequence[Candidate]
    scores: Mapping[str, Mapping[Joint, float]]
    kept: Sequence[Joint]

    @property
    def table(self) -> str:
        """The best of the kept joints, with the FLOPs of the stitch through each and how it won its bucket."""
        decisive = next(iter(self.scores.values()))
        least = least_scores(self.candidates, decisive)
        chosen = sorted((one for one in self.candidates if one.joint in self.kept), key=lambda one: decisive[one.joint])
        rivals = [(one.joint.front, one.joint.end, one.bucket) for one in self.candidates]
        head = ["", "joint", "FLOPs", "bucket", "joints in it", *self.scores, "over the lowest"]
        body = [
            [
                "*" if decisive[one.joint] == least[one.joint] else "",
                str(one.joint),
                quantity(one.flops),
                str(one.bucket),
                str(rivals.count((one.joint.front, one.joint.end, one.bucket))),
                *(f"{by[one.joint]:.4g}" for by in self.scores.values()),
                f"{100 * (decisive[one.joint] / (least[one.joint] or 1) - bool(least[one.joint])):.1f} %",
            ]
            for one in chosen[:_SHOWN]
        ]
        more = f"\nand {len(chosen) - _SHOWN} more" if len(chosen) > _SHOWN else ""
        return aligned([head, *body], left={0, 1}) + more


def check_choosers(names: Sequence[str], *, has_labels: bool) -> None:
    """Refuse unknown choosers, and those that need labels where there are none."""
    for name in names:
        if name not in CHOOSERS:
            raise unknown("chooser", name, CHOOSERS)
        if CHOOSERS[name].needs_labels and not has_labels:
            free = [other for other, chooser in CHOOSERS.items() if not chooser.needs_labels]
            raise InputError(
                f"{name} needs labels, which these images do not have: the class folders in 'train' are labels; give "
                f"DATA with a 'train' split, or choose by {', '.join(free)}"
            )


def choose(
    model: SNNet, batches: Callable[[str], Batches], by: Sequence[str], *, buckets: int = 20, tau: float = 0.05,
    seed: int = 0,
) -> ChosenJoints:  # fmt: skip
    """Score the joints of an SN-Net, and keep the best at every cost.

    Args:
        model: With the weights of its anchors; its stitching layers may be set.
        batches: The images for the chooser of a name.
        by: Names of choosers, of which the first chooses.
        buckets: Equal parts of the FLOPs between two anchors, in each of which joints compete.
        tau: Keep joints up to this share over the lowest score of a bucket.
        seed: Decides whatever choosers draw.

    Raises:
        InputError: If a chooser is unknown or cannot score these joints.

    Source: KLAS.
    """
    check_choosers(by, has_labels=True)
    given = candidates(model, buckets)
    if not given:
        raise InputError("the configuration has no joints to choose from; give one whose anchors are joined")
    with evaluating(model):
        scores = {name: CHOOSERS[name].score(model, batches(name), seed=seed) for name in by}
    for values in scores.values():
        check_scores(given, values)
    return ChosenJoints(given, scores, keep(given, scores[by[0]], tau))


def closest_pair(config: StitchConfig, model: SNNet, batches: Batches) -> tuple[StitchConfig, str]:
    """The configuration of the two anchors whose predictions agree most, and a table of all pairs.

    Raises:
        InputError: If there are no more than two anchors, the pair has no classifier, or joints are already chosen.

    Source: KLAS, choice of anchors.
    """
    if len(config.anchors) < 3 or config.joints is not None:
        found = f"{len(config.anchors)} anchors" if config.joints is None else "chosen joints already"
        raise InputError(f"--pair chooses two of several anchors, but the configuration has {found}; leave it out")
    with evaluating(model):
        thetas = anchor_thetas(model, batches)
    best = min(thetas, key=thetas.__getitem__)
    lines = [["", "anchors", "Theta"]] + [
        ["*" if pair == best else "", " > ".join(pair), f"{value:.4g}"] for pair, value in thetas.items()
    ]
    chosen = [anchor.label in best for anchor in config.anchors]
    recipe = dict(config.recipe)
    if isinstance(rates := recipe.get("anchor_drop_path"), list):  # one for each anchor
        recipe["anchor_drop_path"] = [*compress(rates, chosen)]
    return replace(config, anchors=(*compress(config.anchors, chosen),), recipe=recipe), aligned(lines, left={0, 1})


def write_config(path: Path, config: StitchConfig, kept: Sequence[Joint]) -> StitchConfig:
    """Write a configuration with the chosen joints, and its recipe, as JSON; return it."""
    chosen = replace(config, joints=tuple(map(str, kept)))
    content = paths_for_file({**chosen.to_dict(), "recipe": chosen.recipe}, path)
    write_text(path, json.dumps(content, indent=2) + "\n")
    return chosen

"""The choice of joints, and of a pair of anchors, as a new configuration."""

from __future__ import annotations

import argparse
import csv
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path
from typing import Any

import torch

from stitchkit.choose.commands import ChooseSettings
from stitchkit.choose.klas import SomeImages, anchor_thetas, joint_routes, klas
from stitchkit.data.batches import Batch
from stitchkit.data.open_dataset import open_dataset
from stitchkit.data.source import Source, is_unlabelled
from stitchkit.display import aligned, counted, quantity
from stitchkit.distributed import choose_device
from stitchkit.errors import InputError
from stitchkit.files import replacing, write_text
from stitchkit.measure.profile import Profiler
from stitchkit.model.create import create_snnet
from stitchkit.model.snnet import SNNet
from stitchkit.networks.data_config import data_config_of
from stitchkit.networks.mode import evaluating
from stitchkit.parser import new_file
from stitchkit.paths import paths_for_file
from stitchkit.routes import Joint
from stitchkit.settings.stitch_config import StitchConfig

_SHOWN = 20
"""Joints in a table."""


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


@dataclass(frozen=True)
class ChosenJoints:
    """The candidates, the way to score them, their scores, and the joints kept, in the order of the candidates."""

    candidates: Sequence[Candidate]
    way: str
    scores: Mapping[Joint, float]
    kept: Sequence[Joint]

    @property
    def table(self) -> str:
        """The best of the kept joints, with the FLOPs of the stitch through each and how it won its bucket."""
        lowest = least_scores(self.candidates, self.scores)
        chosen = [candidate for candidate in self.candidates if candidate.joint in self.kept]
        chosen.sort(key=lambda candidate: self.scores[candidate.joint])
        rivals = [(each.joint.front, each.joint.end, each.bucket) for each in self.candidates]
        lines = [["", "joint", "FLOPs", "bucket", "joints in it", self.way, "over the lowest"]]
        for joint, flops, bucket in ((each.joint, each.flops, each.bucket) for each in chosen[:_SHOWN]):
            score, least = self.scores[joint], lowest[joint]
            count = rivals.count((joint.front, joint.end, bucket))
            share = f"{100 * (score / (least or 1) - bool(least)):.1f} %"
            star = "*" if score == least else ""
            lines.append([star, str(joint), quantity(flops), str(bucket), str(count), f"{score:.4g}", share])
        more = f"\nand {len(chosen) - _SHOWN} more" if len(chosen) > _SHOWN else ""
        return aligned(lines, left={0, 1}) + more


def check_way(way: str, *, has_labels: bool) -> None:
    """Refuse probes that learn labels where there are none."""
    if way == "klas" and not has_labels:
        raise InputError(
            "klas needs labels, which these images do not have: the class folders in 'train' are labels; give DATA "
            "with a 'train' split, or choose by klas-label-free"
        )


def choose(
    model: SNNet, batches: Iterable[Batch], way: str = "klas", *, buckets: int = 20, tau: float = 0.05, seed: int = 0
) -> ChosenJoints:
    """Score the joints of an SN-Net, and keep the best at every cost.

    Args:
        way: `klas`, whose probes learn the labels, or `klas-label-free`: what their own anchor predicts.
        buckets: Equal parts of the FLOPs between two anchors; joints compete within each.
        tau: Keep joints up to this share over the lowest score of a bucket.

    Source: KLAS.
    """
    joints = candidates(model, buckets)
    if not joints:
        raise InputError("the configuration has no joints to choose from; give one whose anchors are joined")
    with evaluating(model):
        scores = klas(model, batches, seed=seed, from_labels=way == "klas")
    for candidate in joints:
        if not 0 <= (score := scores.get(candidate.joint, math.nan)) < math.inf:
            raise InputError(f"the score of {candidate.joint} is {score}, not finite and at least 0; check the weights")
    return ChosenJoints(joints, way, scores, keep(joints, scores, tau))


def closest_pair(config: StitchConfig, model: SNNet, batches: Iterable[Batch]) -> tuple[StitchConfig, str]:
    """The configuration of the two anchors whose predictions agree most, and a table of all pairs.

    Source: KLAS, choice of anchors.
    """
    if len(config.anchors) < 3 or config.joints is not None:
        contents = f"{len(config.anchors)} anchors" if config.joints is None else "chosen joints already"
        raise InputError(f"--pair chooses two of several anchors, but the configuration has {contents}; omit it")
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


def scores_file(config: Path) -> Path:
    """The file of scores beside a chosen configuration."""
    return config.with_suffix(".scores.csv")


def write_scores(path: Path, choice: ChosenJoints) -> None:
    """Write the scores of all joints, and which of them were kept."""
    with replacing(path) as draft, draft.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["joint", "stitch", "flops", "bucket", "kept", choice.way])
        for each in choice.candidates:
            joint, is_kept = each.joint, int(each.joint in choice.kept)
            writer.writerow([joint, each.stitch, each.flops, each.bucket, is_kept, choice.scores[joint]])


def run(flags: argparse.Namespace, settings: ChooseSettings, output: Path) -> None:
    """Run `stitchkit choose`."""
    config = StitchConfig.load(flags.stitch_config)
    advice = 'remove "dense" and give images of classes, or train all stitches'
    config.refuse_dense(f"'{flags.stitch_config}'", f"choose needs these; {advice}")
    new_file(str(scores_file(output)))
    device = choose_device(flags.device)
    source = Source(flags.dataset, flags.data, needs_labels=False)
    check_way(flags.by, has_labels=not is_unlabelled(source))
    options: dict[str, Any] = {"pretrained": not flags.no_pretrained}
    for key in ("num_classes", "img_size"):
        options[key] = config.recipe.get(key) if (value := getattr(flags, key)) is None else value
    torch.manual_seed(settings.seed)  # for weights that are random
    model = create_snnet(config, **options).to(device).eval()
    images = open_dataset(source, "train", is_training=True)
    prepared = data_config_of({}, model.input_size, model.pretrained_cfg)

    def batches(what: str) -> SomeImages:
        sampling = {"batch_size": settings.batch_size, "seed": settings.seed, "workers": settings.workers}
        return SomeImages(images, prepared, count=settings.images, device=device, what=what, **sampling)

    if flags.pair:
        config, table = closest_pair(config, model, batches("anchors"))
        print(f"{table}\nkept: {' and '.join(anchor.label for anchor in config.anchors)}, whose predictions agree most")
        model = create_snnet(config, **options).to(device).eval()
    choice = choose(model, batches(flags.by), flags.by, buckets=settings.buckets, tau=settings.tau, seed=settings.seed)
    chosen = write_config(output, config, choice.kept)
    write_scores(scores_file(output), choice)
    left = len(chosen.space_of([*model.views.values()]))
    print(
        f"{choice.table}\n"
        f"{len(choice.kept)} of {counted(len(choice.candidates), 'joint')} kept by {flags.by}, and {left} of "
        f"{counted(len(model.space), 'stitch')}; * marks the lowest score of a bucket\n"
        f"the configuration is {output}, all scores are in {scores_file(output)}"
    )

"""Batch-norm statistics of single routes, which compete with those that an SN-Net shares among all of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from stitchkit.errors import InputError
from stitchkit.measure.agreement import equal_answers
from stitchkit.model.heads.heads import HEADS
from stitchkit.model.levels import LevelInfo
from stitchkit.model.snnet import SNNet
from stitchkit.model.statistics import Statistics, batch_norms, copied_statistics, holding
from stitchkit.networks.create import create_network
from stitchkit.networks.meta import without_values
from stitchkit.networks.mode import evaluating
from stitchkit.settings.dense_recipe import DenseSpec
from stitchkit.settings.recipe import Recipe
from stitchkit.settings.stitch_config import StitchConfig

PORTIONS = 10
"""Portions of training images for the statistics of a stitch, unless a flag says otherwise."""
PORTION = 32
"""Images in a portion, whatever the batch size: statistics depend on it."""
GIVEN, BLENDED, RENEWED = "given", "blended", "renewed"
LOSS, AGREEMENT = "bn_loss", "bn_agreement"
FIGURES = frozenset(["bn", "recalibrate_bn", LOSS, AGREEMENT])
"""What a row of a ledger says of its statistics."""
_FEWEST = 2  # images without which a batch norm after pooling has no variance
_SHARE = 0.5  # share of the renewed statistics in blended ones

Candidates = Mapping[int, Mapping[str, Statistics]]
"""Statistics of each stitch by `cfg_id` and kind."""
Penalties = Mapping[tuple[int, str], float]
"""How badly each stitch does with each kind of statistics."""


@dataclass(frozen=True)
class BestStatistics:
    """The statistics that suit a stitch best, empty for the shared ones, and what its row in the ledger says of them.

    `is_worse` says whether renewed statistics were tried and are worse than the given ones.
    """

    statistics: Statistics
    figures: Mapping[str, object]
    is_worse: bool = False


def freezes_anchors(content: Mapping[str, object]) -> bool:
    """Whether a checkpoint says that its anchors were not trained, so that their batch norms have given statistics."""
    was_kept = content.get("preserve") in ("frozen", "lora")  # as checkpoints said before there was a word for it
    return bool(content.get("frozen_anchors", was_kept))


def with_calibration(
    recipe: Recipe, config: StitchConfig | None, content: Mapping[str, object] = MappingProxyType({})
) -> Recipe:
    """The recipe of an evaluation, which says whether stitched routes may get batch-norm statistics of their own.

    What flags and configuration leave open stays open, so that statistics compete, if trained anchors or the head of
    dense prediction have batch norms. Published configurations leave nothing open: they say 0. The checkpoint says
    whether the anchors were trained.
    """
    if recipe.run.recalibrate_bn is not None:
        return recipe
    if config is not None:
        with without_values():
            trained = () if freezes_anchors(content) else config.anchors
            networks = [create_network(spec, pretrained=False, checkpoints=False)[0] for spec in trained]
            networks += [] if recipe.dense.spec is None else [_head_of(recipe.dense.spec)]
        if any(map(batch_norms, networks)):
            return recipe
    return replace(recipe, run=replace(recipe.run, recalibrate_bn=0))


def _head_of(spec: DenseSpec) -> nn.Module:
    """A head of this kind; whether it has batch norms does not depend on its levels."""
    assert spec.head is not None, "each task has a default"
    return HEADS[spec.head]([LevelInfo(channels=8, reduction=16, num_prefix_tokens=0)] * 4, 1)


def num_images(total: int, portions: int | None, size: int = PORTION) -> tuple[int, int]:
    """How many of `total` images renew statistics, and how many others judge these: none after given portions."""
    if total < (least := _FEWEST if portions else 2 * _FEWEST):
        few = f"{least} training images, not {total}"
        raise InputError(f"batch-norm statistics need at least {few}; give more, or --recalibrate-bn 0")
    if portions is not None:
        return _whole(min(total, portions * size), size), 0
    half = _whole(min(total // 2, PORTIONS * size), size)
    return half, min(total - half, PORTIONS * size)


def _whole(images: int, size: int) -> int:
    """As many images as fill whole portions, because a few left over would count like a whole portion."""
    return max(images - images % size, min(images, size))


@torch.no_grad()
def renew(net: nn.Module, portions: Iterable[torch.Tensor]) -> None:
    """Recompute a network's running statistics, in place, as the mean over portions of images `[B, C, H, W]`.

    Source: once-for-all (Cai et al., ICLR 2020) for the subnets of a supernet.
    """
    norms = batch_norms(net)
    for norm in norms:
        norm.reset_running_stats()
    for images in _learning(net, norms, portions if norms else ()):
        net(images)


def _learning(
    net: nn.Module, norms: Collection[_BatchNorm], portions: Iterable[torch.Tensor]
) -> Iterator[torch.Tensor]:
    """Portions of images, while batch norms learn the plain mean of what the network runs on each.

    Unlike torch's `update_bn`, only batch norms train: dropout and stochastic depth would change their inputs.
    """
    before = [(norm, norm.momentum) for norm in norms]
    try:
        with evaluating(net):
            for norm in norms:
                norm.train()
            for number, images in enumerate(portions, start=1):
                for norm in norms:
                    norm.momentum = 1 / number
                yield images
    finally:
        for norm, momentum in before:
            norm.momentum = momentum


@torch.no_grad()
def renewed(
    model: SNNet, cfg_ids: Iterable[int], portions: Iterable[torch.Tensor], *, keeps_anchors: bool = False
) -> dict[int, Statistics]:
    """The statistics of stitches that portions of images give, which are read once for all of them.

    With `keeps_anchors`, the norms of anchors keep theirs, and only those of a head learn.
    """
    norms = {cfg_id: own_norms(model, cfg_id, keeps_anchors=keeps_anchors) for cfg_id in cfg_ids}
    own: dict[int, Statistics] = {cfg_id: copied_statistics(each) for cfg_id, each in norms.items()}
    every = {norm for each in norms.values() for norm in each.values()}
    counters = {
        f"{name}.num_batches_tracked": norm.num_batches_tracked.clone()
        for each in norms.values() for name, norm in each.items() if norm.num_batches_tracked is not None
    }  # fmt: skip
    with holding(model, counters):
        for images in _learning(model, every, portions):
            for cfg_id, statistics in own.items():
                with holding(model, statistics):
                    model(images, cfg_id)
    return own


def own_norms(model: SNNet, cfg_id: int, *, keeps_anchors: bool = False) -> dict[str, _BatchNorm]:
    """The batch norms that may have separate statistics in a stitch, by name; arguments as for `renewed`."""
    norms = model.norms_of(cfg_id)
    return {name: norm for name, norm in norms.items() if not (keeps_anchors and name.startswith("anchors."))}


def candidates(model: SNNet, own: Mapping[int, Statistics]) -> Candidates:
    """The renewed statistics of stitches, those that the network has given them, and a mixture of both."""
    shared = model.state_dict()
    return {
        cfg_id: {
            GIVEN: {},
            BLENDED: {name: shared[name].lerp(value, _SHARE) for name, value in statistics.items()},
            RENEWED: statistics,
        }
        for cfg_id, statistics in own.items()
    }


@torch.no_grad()
def penalties(
    model: SNNet,
    tried: Candidates,
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> tuple[Penalties, str]:
    """How badly stitches do with each of their statistics, and the figure that says so in a ledger.

    By the loss; without labels, which are -1, by the agreement of answers or features with the end anchor's.
    """
    flat = [(cfg_id, kind, own) for cfg_id, kinds in tried.items() for kind, own in kinds.items()]
    ends = {cfg_id: [*model.views].index(model.space[cfg_id].end) for cfg_id in tried}
    losses, agreed = defaultdict[tuple[int, str], float](float), defaultdict[tuple[int, str], float](float)
    known = total = 0
    with evaluating(model):
        for images, labels in batches:
            with autocast():
                expected = {end: model(images, end).float() for end in {*ends.values()}}
            known, total = known + int((labels >= 0).sum()), total + len(images)
            for cfg_id, kind, statistics in flat:
                with holding(model, statistics), autocast():
                    output = model(images, cfg_id).float()
                agreed[cfg_id, kind] += len(images) * _agreement(model, output, expected[ends[cfg_id]])
                if model.num_classes and output.ndim == 2:
                    losses[cfg_id, kind] += F.cross_entropy(output, labels, ignore_index=-1, reduction="sum").item()
    if known and losses:
        return {key: loss / known for key, loss in losses.items()}, LOSS
    return {key: -agreement / total for key, agreement in agreed.items()}, AGREEMENT


def _agreement(model: SNNet, output: torch.Tensor, expected: torch.Tensor) -> float:
    """The agreement with the end anchor in percent: of classes, or of features or depths."""
    if model.num_classes > 1:
        return equal_answers(output, expected)
    return 100 * F.cosine_similarity(output.flatten(1), expected.flatten(1)).mean().item()


def best(tried: Candidates, penalties: Penalties, figure: str) -> dict[int, BestStatistics]:
    """The best statistics of each stitch; of equally good ones, those that change less."""
    chosen = {}
    for cfg_id, kinds in tried.items():
        kind = min(kinds, key=lambda kind: penalties[cfg_id, kind])
        penalty = penalties[cfg_id, kind]
        figures = {"bn": kind, figure: penalty if figure == LOSS else -penalty}
        figures |= {"recalibrate_bn": PORTIONS} if kind != GIVEN else {}
        is_worse = penalties[cfg_id, RENEWED] > penalties[cfg_id, GIVEN]
        chosen[cfg_id] = BestStatistics(kinds[kind], figures, is_worse)
    return chosen


def recalibrate(
    model: SNNet, images: torch.Tensor | Iterable[torch.Tensor], labels: torch.Tensor | None = None
) -> dict[int, str]:
    """Give stitches separate batch-norm statistics where these beat the shared ones.

    Half of the images renew the statistics. The other half compares given, blended and renewed ones: by the loss, or
    without labels by the agreement with the end anchor.

    Args:
        model: An SN-Net; its `statistics` are replaced, its weights stay.
        images: Prepared training images `[N, C, H, W]`, or batches of them; 640 are enough, and of more some are drawn.

    Returns:
        What each stitch with batch norms that it shares runs with now: `given`, `blended` or `renewed`, by `cfg_id`.

    Raises:
        InputError: If there are fewer than 4 images, or another number of labels.
    """
    every = images if isinstance(images, torch.Tensor) else torch.cat([*images])
    known = torch.full((len(every),), -1) if labels is None else labels
    if len(known) != len(every):
        raise InputError(f"there are {len(known)} labels for {len(every)} images; give one for each")
    renewing, judging = num_images(len(every), None)
    order = torch.randperm(len(every), generator=torch.Generator().manual_seed(0))
    first, rest = (torch.split(part, PORTION) for part in order[: renewing + judging].tensor_split([renewing]))
    weights = next(model.parameters())
    before = model.statistics, model.lacks_statistics
    model.drop_statistics()
    try:
        cfg_ids = [cfg_id for cfg_id in model.space.ids if own_norms(model, cfg_id)]
        portions = (every[part].to(weights) for part in first)
        tried = candidates(model, renewed(model, cfg_ids, portions))
        judged = ((every[part].to(weights), known[part].to(weights.device)) for part in rest)
        chosen = best(tried, *penalties(model, tried, judged))
    except BaseException:  # such as images that do not fit: the network stays as it was
        model.statistics, model.lacks_statistics = before
        raise
    model.statistics = {cfg_id: each.statistics for cfg_id, each in chosen.items()}
    return {cfg_id: str(each.figures["bn"]) for cfg_id, each in chosen.items()}

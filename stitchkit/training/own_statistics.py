"""Stitched routes with batch-norm statistics of their own, for an evaluation."""

from __future__ import annotations

import copy
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from itertools import chain, islice
from typing import Any

import torch
from torch import nn
from torch.utils.data import IterableDataset

from stitchkit.data.unreadable import NO_CLASS
from stitchkit.display import counted
from stitchkit.distributed import from_primary
from stitchkit.engine.settings import Autocast
from stitchkit.measure import recalibrate as norms
from stitchkit.measure.ledger import Ledger
from stitchkit.measure.statistics_file import Kept, check_statistics, read_statistics, statistics_file, write_statistics
from stitchkit.model.snnet import SNNet
from stitchkit.model.statistics import holding
from stitchkit.networks.mode import evaluating
from stitchkit.settings.recipe import Recipe
from stitchkit.tasks.table import TASKS
from stitchkit.tasks.windows import Windows
from stitchkit.training.data import Loaders
from stitchkit.training.pair_data import Pair
from stitchkit.training.session import Session

_logger = logging.getLogger(__name__)


def give_statistics(
    session: Session, model: SNNet, cfg_ids: Sequence[int], ledgers: Sequence[Ledger], origin: Mapping[str, object],
    *, keeps_anchors: bool,
) -> dict[int, dict[str, object]]:  # fmt: skip
    """Give stitches that will be evaluated the batch-norm statistics that suit them, kept beside the ledger.

    The primary rank computes them, so that neither the number of ranks nor their batches decide. Statistics of another
    `origin` are replaced. Returned is what the rows of stitches in the ledger say of their statistics.
    """

    def find() -> dict[int, Kept]:
        (ledger,) = ledgers
        path = statistics_file(ledger.path)
        kept = (read_statistics(path, model, origin) if path.is_file() else None) or {}
        check_statistics(kept, ledger.path, ledger.rows)
        lacking = [cfg_id for cfg_id in cfg_ids if cfg_id not in kept]
        added = own_statistics(
            session.recipe, model, session.loaders, lacking, autocast=session.autocast, keeps_anchors=keeps_anchors,
            by_agreement=session.by_agreement,
        )  # fmt: skip
        kept |= {cfg_id: (each.statistics, each.figures) for cfg_id, each in added.items()}
        if added:
            write_statistics(path, model, kept, origin)
        return {cfg_id: (_on("cpu", statistics), figures) for cfg_id, (statistics, figures) in kept.items()}

    kept = from_primary(session.world, find)
    model.statistics = {cfg_id: _on(session.world.device, statistics) for cfg_id, (statistics, _) in kept.items()}
    return {cfg_id: dict(figures) for cfg_id, (_, figures) in kept.items()}


def _on(device: torch.device | str, statistics: Any) -> dict[str, torch.Tensor]:
    return {name: value.to(device) for name, value in statistics.items()}


def own_statistics(
    recipe: Recipe, model: SNNet, loaders: Loaders, cfg_ids: Iterable[int], *, keeps_anchors: bool, by_agreement: bool,
    autocast: Autocast = nullcontext,
) -> dict[int, norms.BestStatistics]:  # fmt: skip
    """The batch-norm statistics that suit stitches; nothing for those that have no norms, or keep all of theirs.

    With `--recalibrate-bn` they are renewed. Otherwise given, blended and renewed ones compete on training images that
    renewed none: by their labels, or `by_agreement` if there are none, or they are of other classes.
    """
    forced = recipe.run.recalibrate_bn
    keeps_anchors = keeps_anchors and forced is None
    own = [cfg_id for cfg_id in cfg_ids if norms.own_norms(model, cfg_id, keeps_anchors=keeps_anchors)]
    if forced == 0 or not own:
        return {}
    train, count = loaders.train, forced or norms.PORTIONS
    assert train is not None, "recalibration opens the training split"
    parts: Any = (train, *loaders.held_out)
    batches = chain.from_iterable(parts)
    if not isinstance(train.dataset, IterableDataset):
        count = len(train)
    with autocast():
        fresh = norms.renewed(model, own, _portions(islice(batches, count), recipe, model), keeps_anchors=keeps_anchors)
    if forced:
        _logger.info("batch-norm statistics of %s are renewed, as --recalibrate-bn says", counted(len(own), "route"))
        figures = {"bn": norms.RENEWED, "recalibrate_bn": forced}
        return {cfg_id: norms.BestStatistics(statistics, figures) for cfg_id, statistics in fresh.items()}
    tried = norms.candidates(model, fresh)
    held_out: Iterable[Any] = islice(batches, norms.PORTIONS)
    if model.route_head.is_shared:
        chosen = norms.best(tried, _dense_penalties(model, tried, held_out, recipe, autocast), norms.LOSS)
    else:
        if by_agreement:
            held_out = ((images, torch.full_like(labels, NO_CLASS)) for images, labels in held_out)
        chosen = norms.best(tried, *norms.penalties(model, tried, held_out, autocast))
    kinds = Counter(str(each.figures["bn"]) for each in chosen.values())
    _logger.info(
        "batch-norm statistics of %s, chosen on held-out training images: %s; --recalibrate-bn N recomputes all, "
        "--recalibrate-bn 0 none",
        counted(len(chosen), "route"), ", ".join(f"{count} {kind}" for kind, count in kinds.items()),
    )  # fmt: skip
    if worse := [str(cfg_id) for cfg_id, each in chosen.items() if each.is_worse]:
        _logger.info("renewed statistics are worse than given ones for cfg_id %s", ", ".join(worse))
    return chosen


def renewed_copy(session: Session) -> nn.Module:
    """A copy of the plain model with renewed batch-norm statistics."""
    net, train = copy.deepcopy(session.model), session.loaders.train
    assert train is not None, "recalibration opens the training split"
    with session.autocast():
        norms.renew(net, (images for images, _ in islice(train, session.recipe.run.recalibrate_bn)))
    return net


def _portions(batches: Iterable[Any], recipe: Recipe, model: SNNet) -> Iterator[torch.Tensor]:
    """The images of batches; in dense prediction, their windows."""
    if not model.route_head.is_shared:
        yield from (images for images, _ in batches)
        return
    windows = Windows.of_task(recipe.dense, model.input_size[1:])
    for pairs in batches:
        yield from spread(windows.cut([image for image, _ in pairs]).windows, norms.PORTION)


def spread(windows: torch.Tensor, most: int) -> Iterator[torch.Tensor]:
    """Windows `[W, C, h, w]` in portions of at most so many, each from all images: neighbours overlap."""
    count = -(-len(windows) // most)
    return (windows[first::count] for first in range(count))


@torch.no_grad()
def _dense_penalties(
    model: SNNet, tried: norms.Candidates, batches: Iterable[Sequence[Pair]], recipe: Recipe, autocast: Autocast
) -> norms.Penalties:
    """The mean loss over images of stitches with each of their statistics."""
    losses, loss, total = defaultdict[tuple[int, str], float](float), TASKS[recipe.dense.task].loss(recipe.dense), 0
    windows = Windows.of_task(recipe.dense, model.input_size[1:])
    keys = [(cfg_id, kind) for cfg_id, kinds in tried.items() for kind in kinds]

    def run(portions: Sequence[torch.Tensor]) -> Iterator[tuple[int, torch.Tensor]]:
        for number, (cfg_id, kind) in enumerate(keys):
            with holding(model, tried[cfg_id][kind]):
                yield number, torch.cat([model(part, cfg_id) for part in portions])

    for pairs in batches:
        total += len(pairs)
        images, targets = zip(*pairs, strict=True)
        with evaluating(model), autocast():
            for number, merged in windows.outputs(run, images, norms.PORTION):
                for output, target in zip(merged(targets), targets, strict=True):
                    losses[keys[number]] += loss([output[None]], target[None]).item()
    return {key: value / total for key, value in losses.items()}

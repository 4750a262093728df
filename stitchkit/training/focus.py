"""Focus: stop training stitches that are rarely on the Pareto front of held-out training images."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import numpy as np
import torch

from stitchkit.data.batches import Batch
from stitchkit.display import counted
from stitchkit.distributed import gather_objects
from stitchkit.engine.loop import Trainer
from stitchkit.engine.settings import Autocast
from stitchkit.measure.evaluate import batches_of
from stitchkit.measure.formulas import Bits, share_on_front
from stitchkit.measure.pareto import pareto_front
from stitchkit.measure.two_stage import survivors
from stitchkit.model.onepass import OnePass
from stitchkit.model.snnet import SNNet
from stitchkit.networks.mode import judging
from stitchkit.training.samplers import Sampler
from stitchkit.training.session import Session
from stitchkit.training.task import StitchTask

_logger = logging.getLogger(__name__)

_LEAST = 0.05
"""Stitches with a smaller P(on the front) are dropped."""
_DISAGREE = 0.1
"""Share of images on which two stitches of similar cost usually disagree."""


def focus_after(
    session: Session, trainer: Trainer, epoch: int, epochs: int, after_batch: Callable[[], None] = lambda: None
) -> None:
    """Drop stitches after an epoch, if the settings ask for it and training goes on; every rank calls this.

    `after_batch` is called equally often on all ranks.
    """
    every, task = session.recipe.stitch.focus, trainer.task
    if not every or (epoch + 1) % every or epoch + 1 == epochs:
        return
    assert isinstance(task, StitchTask), "others have no stitches"
    assert isinstance(task.network, SNNet), "others have no stitches"
    assert task.sampler is not None, "others have no stitches"
    parts = (batches_of(loader, session.world, "held out", after_batch) for loader in session.loaders.held_out)
    narrow(task.network, task.sampler, *parts, autocast=trainer.autocast)


def narrow(
    network: SNNet, sampler: Sampler, first: Iterable[Batch], rest: Iterable[Batch], *, autocast: Autocast
) -> None:
    """Let a sampler draw only stitches that are worth training, by the anchors and all that it draws now.

    Args:
        network: Whose stitches they are; this leaves no trace in it.
        sampler: Keeps what is left, and so do checkpoints.
        first: Held-out images of this rank with labels, which all stitches see.
        rest: Others, which only those see that are not clearly behind on the first.
        autocast: Makes the context in which the networks run.
    """
    trained, anchors = sampler.cfg_ids, range(network.space.num_anchors)
    routes = sorted({*trained, *anchors})
    costs = {cfg_id: sampler.cost(cfg_id) for cfg_id in routes}
    # All ranks have the same bits, so they agree.
    judged, right, part = _judge(network, costs, first, rest, autocast)
    # Anchors come first, so that their places are their numbers.
    worth = worth_training(right, [costs[cfg_id] for cfg_id in judged], always=anchors)
    kept = {judged[place] for place in worth}
    dropped = [cfg_id for cfg_id in trained if cfg_id not in kept]
    if len(dropped) == len(trained):
        _logger.warning("--focus: beside the anchors no stitch is worth training, so all %d stay", len(dropped))
        return
    sampler.drop(dropped)
    _logger.info(
        "--focus: %d of %s dropped, %d clearly behind on %s and %d with a P(front) under %g %% on all %s: %s",
        len(dropped), counted(len(trained), "stitch"), len({*dropped}.difference(judged)),
        counted(part, "held-out image"), len({*dropped}.intersection(judged)), 100 * _LEAST, f"{right.shape[1]:,}",
        ", ".join(map(str, dropped)) or "none",
    )  # fmt: skip


def _judge(
    network: SNNet, costs: Mapping[int, int], first: Iterable[Batch], rest: Iterable[Batch], autocast: Autocast
) -> tuple[list[int], Bits, int]:
    """The stitches that are not clearly behind on the first images, and which of all images they have right.

    Clearly behind is more than two standard deviations of a difference below the best at their cost. The part may be
    easier than the whole, so those that have seen nothing else are not compared with the others again.

    Args:
        costs: That of each stitch to judge, by its `cfg_id`.

    Returns:
        The stitches, their answers `[stitches, images]`, and how many of the images came first.
    """
    routes = list(costs)
    right, known = _answers(network, routes, first, autocast)
    part = int(known.sum())
    within = 200 * math.sqrt(_DISAGREE / max(part, 1))
    always = range(network.space.num_anchors)
    alive = survivors(right.sum(axis=1).tolist(), max(part, 1), list(costs.values()), within, always=always)
    judged = [routes[place] for place in alive]
    more, more_known = _answers(network, judged, rest, autocast)
    return judged, np.concatenate([right[alive][:, known], more[:, more_known]], axis=1), part


@torch.no_grad()
def _answers(network: SNNet, routes: Sequence[int], batches: Iterable[Batch], autocast: Autocast) -> tuple[Bits, Bits]:
    """Which images stitches have right, `[routes, images]`, and which have labels, `[images]`, over all ranks."""
    one_pass, answers = OnePass(network, routes), [torch.zeros(len(routes) + 1, 0, dtype=torch.bool)]
    with judging(network) as by_batch:
        for images, labels in batches:
            if by_batch and len(images) == 1:  # it has no statistics of a batch
                answers.append(torch.zeros(len(routes) + 1, 1, dtype=torch.bool))
                continue
            with autocast():
                logits = {cfg_id: network(images, cfg_id) for cfg_id in routes} if by_batch else one_pass(images)
            found = [logits[cfg_id].argmax(1) == labels for cfg_id in routes]
            answers.append(torch.stack([*found, labels >= 0]).cpu())
    ranks = gather_objects(torch.cat(answers, dim=1).numpy())
    bits = np.zeros((len(routes) + 1, sum(own.shape[1] for own in ranks)), bool)
    for rank, own in enumerate(ranks):  # in the order of the images, so that the number of ranks plays no part
        bits[:, rank :: len(ranks)] = own
    return bits[:-1], bits[-1]


def worth_training(right: Bits, costs: Sequence[float], always: Collection[int] = ()) -> list[int]:
    """The places of the stitches that may be on the front of cost and accuracy.

    They are on it in at least 5 % of sets of images drawn anew, or on that of these images: of many stitches that are
    alike, each may be on the front too rarely, and yet one of them is.

    Args:
        right: Whether a stitch's answer is the label, `[stitches, images]`; all have seen all images.
        costs: The cost of each, such as FLOPs.
        always: Places of stitches that stay in any case.
    """
    kept = {*always}
    kept |= {place for place, share in enumerate(share_on_front(right, costs)) if share >= _LEAST}
    accuracies = 100 * right.sum(axis=1) / max(right.shape[1], 1)
    rows = [{"cfg_id": place, "flops": cost, "acc1": accuracies[place]} for place, cost in enumerate(costs)]
    return sorted(kept | {row["cfg_id"] for row in pareto_front(rows, metric="acc1")})

"""`--eval`: evaluate every stitch of trained weights into the ledger."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

import torch
from timm.utils import distribute_bn
from torch import nn

from stitchkit.distributed import from_primary
from stitchkit.errors import InputError
from stitchkit.measure.evaluate import PartialSums, Score, batches_of, evaluate, evaluate_stitch
from stitchkit.measure.ledger import Ledger
from stitchkit.measure.ledger_origin import LATENCIES, changed, origin_file, origin_of, read_origin, write_origin
from stitchkit.measure.profile import Profiler
from stitchkit.measure.recalibrate import recalibrate
from stitchkit.model.onepass import OnePass
from stitchkit.model.snnet import SNNet
from stitchkit.train.checkpoint import load_weights
from stitchkit.train.network import uncompiled
from stitchkit.train.session import Session

_logger = logging.getLogger(__name__)

LEDGER = "stitches_res.txt"
_MIB = 2**20


def evaluate_stitches(session: Session) -> None:
    """Evaluate every stitch that the ledger lacks, or the plain model.

    All stitches are evaluated in one pass over the images; with `--recalibrate-bn`, each has its own pass. A ledger of
    other weights or data is left as it is.
    """
    recipe, model = session.recipe, session.model
    digest = load_weights(session, ema=recipe.optim.model_ema)[1] if recipe.run.resume else ""
    if not isinstance(model, SNNet):
        score = _score_alone(session, None, "evaluation")
        _logger.info("%s", json.dumps({"model": recipe.model.model, **score._asdict()}))
        return
    wanted = model.space.select(recipe.run.eval_stitches) if recipe.run.eval_stitches else range(len(model.space))
    origin = origin_of(recipe, digest, ranks=session.world.size)
    ledgers: list[Ledger] = []  # one, on the primary rank; other machines may not see the file

    def find_missing() -> list[int]:
        ledgers.append(_open_ledger(session, model, origin))
        return [cfg_id for cfg_id in wanted if cfg_id in ledgers[0].missing]

    missing, last = from_primary(session.world, find_missing), len(model.space) - 1
    if recipe.run.recalibrate_bn:  # norm statistics differ from route to route, so no work is shared
        scores: Iterable[tuple[int, Score]] = (
            (cfg_id, _score_alone(session, cfg_id, f"stitch {cfg_id}/{last}")) for cfg_id in missing
        )
    else:
        scores = _in_one_pass(session, model, missing, origin)
    for cfg_id, found in scores:
        for ledger in ledgers:
            ledger.append(cfg_id, found._asdict())
        _logger.info("stitch %d/%d  %s  acc1 %.2f", cfg_id, last, model.space[cfg_id], found.acc1)
    for ledger in ledgers:
        _add_latencies(recipe.run.latency, model, ledger, origin)
        _logger.info("%d stitches are in %s; their front: stitchkit pareto %s", len(ledger.rows), *2 * [ledger.path])


def _in_one_pass(
    session: Session, model: SNNet, cfg_ids: Sequence[int], origin: Mapping[str, object]
) -> Iterator[tuple[int, Score]]:
    """The score of each stitch, all from one pass over the images.

    Every rank saves its sums after each batch, from which a killed evaluation resumes.
    """
    if not cfg_ids:
        return
    world, run, loader = session.world, session.recipe.run, session.loaders.validation
    one_pass = OnePass(model, cfg_ids, memory=run.eval_memory and run.eval_memory * _MIB)

    def logits(images: torch.Tensor) -> list[torch.Tensor]:
        found = one_pass(images)
        return [found[cfg_id] for cfg_id in cfg_ids]

    data = session.recipe.data
    batch_size = data.validation_batch_size or data.batch_size
    of = {**origin, "cfg_ids": list(cfg_ids), "world_size": world.size, "batch_size": batch_size}
    partial = PartialSums(session.folder / f"{LEDGER}.part{world.rank}", of)
    scores = evaluate(
        model, logits, batches_of(loader, world, f"{len(cfg_ids)} stitches"),
        device=world.device, autocast=session.autocast, count=len(cfg_ids), partial=partial,
    )  # fmt: skip
    yield from zip(cfg_ids, scores, strict=True)
    partial.remove()  # only now: the ledger has all rows


def _score_alone(session: Session, cfg_id: int | None, what: str) -> Score:
    """The score of one stitch, recalibrated if requested, or of the plain model."""
    world, net = session.world, session.model
    if session.recipe.run.recalibrate_bn:
        net, cfg_id = _recalibrated(session, cfg_id), None
    batches = batches_of(session.loaders.validation, world, what)
    return evaluate_stitch(net, cfg_id, batches, device=world.device, autocast=session.autocast)


def _recalibrated(session: Session, cfg_id: int | None) -> nn.Module:
    """A copy of one stitch, or of the plain model, with its own batch-norm statistics."""
    run, loader = session.recipe.run, session.loaders.train
    assert loader is not None, "recalibration opens the training split"
    net = session.model.extract(cfg_id) if isinstance(session.model, SNNet) else copy.deepcopy(session.model)
    with session.autocast():
        recalibrate(net, (images for images, _ in islice(loader, run.recalibrate_bn)))
    if way := session.recipe.distributed.dist_bn:
        distribute_bn(net, session.world.size, way == "reduce")
    return net


def _open_ledger(session: Session, model: SNNet, origin: Mapping[str, object]) -> Ledger:
    """The ledger to continue, if it was measured with the same weights on the same data."""
    path = session.folder / LEDGER
    ledger = Ledger(path, model.space, uncompiled(model)(Profiler(model).cost))
    before = _check_origin(path, origin) if ledger.rows else {}
    session.save_settings("eval_args.yaml")
    write_origin(path, origin, before.get(LATENCIES))
    return ledger


def _add_latencies(batch_size: int, model: SNNet, ledger: Ledger, origin: Mapping[str, object]) -> None:
    """Measure the latency of every stitch in the ledger again: results of separate runs are not comparable.

    Only the primary rank does this, after the others have finished.
    """
    if not batch_size or not ledger.rows:
        return
    from stitchkit.measure.latency import add_latencies  # slow to import

    with uncompiled(model):
        said = add_latencies(ledger.rows, model, batch_size=batch_size)
    ledger.rewrite()
    write_origin(ledger.path, origin, said)
    _logger.info("%s", said)


def _check_origin(path: Path, origin: Mapping[str, object]) -> dict[str, object]:
    """The settings that a ledger was measured with."""
    advice = "choose another --experiment or move the file away"
    if not origin_file(path).exists():
        raise InputError(
            f"result file '{path}' has no '{origin_file(path).name}' beside it that says how it was measured; {advice}"
        )
    before = read_origin(path, advice=advice)
    if key := changed(before, origin):
        raise InputError(f"result file '{path}' was measured with {key} {before.get(key)}, now {origin[key]}; {advice}")
    return before

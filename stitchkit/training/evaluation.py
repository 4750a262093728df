"""`--eval`: evaluate every stitch of trained weights into the ledger."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any

from stitchkit.data.identity import images_digest
from stitchkit.display import command, counted
from stitchkit.distributed import from_primary
from stitchkit.engine.run_log import begin_log
from stitchkit.errors import InputError
from stitchkit.measure import ledger_origin as origins
from stitchkit.measure.intervals import add_intervals, compared_beside
from stitchkit.measure.latency import add_latencies
from stitchkit.measure.ledger import LEDGER, Ledger
from stitchkit.measure.metric import metric_of
from stitchkit.measure.per_class import PER_CLASS
from stitchkit.measure.profile import Profiler
from stitchkit.measure.recalibrate import freezes_anchors
from stitchkit.model.snnet import SNNet
from stitchkit.networks.timm_model import as_timm
from stitchkit.training.checkpoint import load_weights
from stitchkit.training.dense.examples import write_examples
from stitchkit.training.judging import Judge, JudgedAnswers, judge_stitches, judged_of, remove_progress
from stitchkit.training.network import uncompiled
from stitchkit.training.own_statistics import give_statistics, renewed_copy
from stitchkit.training.run_network import run_network
from stitchkit.training.session import Session

_logger = logging.getLogger(__name__)

_MOVE = "choose another --experiment or move the file away"
_UNSAID = ("acc5", "loss", "images", "sure_images")
# Settings that choose a plain model and its weights without --resume; a ledger knows its network by the stitches.
_OF_A_MODEL = ("model", "model_kwargs", "pretrained_path", "initial_checkpoint")


def evaluate_stitches(session: Session) -> None:
    """Evaluate every stitch that the ledger lacks, or the plain model.

    Stitches are evaluated in one pass over the images. Results of other weights or data are left as they are.
    """
    recipe, model, world = session.recipe, session.model, session.world
    content, origin, missing, ledgers = prepare_evaluation(session)
    from_primary(world, lambda: _begin(session, origin))
    if not isinstance(model, SNNet):
        net = renewed_copy(session) if recipe.run.recalibrate_bn else model
        judged_by = JudgedAnswers(session)
        images = judged_by.evaluate(judged_by.networks(net, {0: "the model"}, run_network(net).each([0])), "evaluation")
        _logger.info("%s", json.dumps({"model": recipe.model.model, **images.figures(0)}))
        from_primary(world, lambda: judged_by.keep_classes(images, {"acc1": 0}))
        return
    norms = give_statistics(session, model, missing, ledgers, origin, keeps_anchors=freezes_anchors(content))
    numbers = count(1)
    judged: Iterator[Mapping[int, Mapping[str, float]]]
    if model.num_classes:
        judged = judge_stitches(session, model, missing, origin, ledgers) if missing else iter(())
    else:
        judged = Judge(session, model).stitches(missing) if missing else iter(())
    for scores in judged:
        for ledger in ledgers:
            for cfg_id, figures in scores.items():
                ledger.append(cfg_id, {**figures, **norms.get(cfg_id, {})})
        for cfg_id, figures in scores.items():
            words = "  ".join(f"{key} {value:.2f}" for key, value in figures.items() if key not in _UNSAID)
            _logger.info(
                "stitch %d/%d  cfg_id %d  %s  %s", next(numbers), len(missing), cfg_id, model.space[cfg_id], words
            )

    def finish() -> None:
        for ledger in ledgers:
            remove_progress(session.folder)
            add_intervals(ledger.rows, compared_beside(ledger.path, metric_of(ledger.rows)))
            ledger.rewrite()
            if (batch_size := recipe.run.latency) and ledger.rows:  # all of them: separate runs are not comparable
                _logger.info("measuring the latency of each stitch in turns, for a minute or at least seven rounds")
                with uncompiled(model):
                    summary = add_latencies(ledger.rows, model, batch_size=batch_size)
                ledger.rewrite()
                _logger.info("%s", summary)
            front = command("stitchkit", "pareto", ledger.path)
            _logger.info("%s has %s; the front: %s", ledger.path, counted(len(ledger.rows), "stitch"), front)

    if model.route_head.is_shared:
        uncompiled(model)(write_examples)(session, model, ledgers)
    from_primary(world, finish)  # the other ranks wait, since their callers read the ledger next


def prepare_evaluation(session: Session) -> tuple[dict[str, Any], dict[str, object], list[int], list[Ledger]]:
    """Load the weights, and check what is wanted against the results so far; nothing is written.

    Returns:
        The content of the checkpoint, empty without one; all that the figures depend on; the stitches to evaluate, none
        for a plain model; and the ledger of an SN-Net on the primary rank, since other machines may not see the file.
    """
    recipe, model, ledgers = session.recipe, session.model, list[Ledger]()
    content, digest = load_weights(session, ema=recipe.optim.model_ema) if recipe.run.resume else ({}, "")
    if recipe.run.bank_images and as_timm(model).num_classes:
        raise InputError("--bank-images requires networks without classes; omit it, or add --num-classes 0")
    origin, wanted = origins.origin_of(recipe, digest), list[int]()
    if isinstance(model, SNNet):
        if not model.num_classes:
            origin |= origins.of_the_bank(recipe)
        origin["by_agreement"] = session.by_agreement
        chosen = recipe.run.eval_stitches
        wanted = [*model.space.ids] if chosen is None else model.space.select(chosen)
    else:
        origin |= {key: recipe.flat()[key] for key in _OF_A_MODEL}
    origin[origins.IMAGES] = from_primary(session.world, lambda: images_digest(session.loaders.validation.dataset))

    def find_missing() -> list[int]:
        if not isinstance(model, SNNet):
            return []
        ledgers.append(Ledger(_result(session), model.space, uncompiled(model)(Profiler(model).cost)))
        if ledgers[0].rows:
            before = _check_origin(ledgers[0].path, origin)
            judged_of(session).check_beside(ledgers[0])
            if before[origins.IMAGES] != origin[origins.IMAGES]:  # only now: hits say which image is another
                raise InputError(
                    f"result file '{ledgers[0].path}' was measured on other images: the validation images have changed "
                    f"since, in names, labels, sizes or content; {_MOVE}"
                )
        return [cfg_id for cfg_id in wanted if cfg_id in ledgers[0].missing]

    return content, origin, from_primary(session.world, find_missing), ledgers


def _result(session: Session) -> Path:
    return session.folder / (LEDGER if isinstance(session.model, SNNet) else PER_CLASS)


def _begin(session: Session, origin: Mapping[str, object]) -> None:
    """Begin the log of an evaluation, and save its settings and what its figures depend on."""
    session.save_settings("eval_args.yaml")
    begin_log(session.folder)
    _logger.info("evaluating %s", session.recipe.run.resume or "the initial weights; --resume chooses a checkpoint")
    if (path := _result(session)).exists() and not isinstance(session.model, SNNet):
        _logger.info("'%s' of an earlier evaluation is replaced", path)
    origins.write_origin(path, origin)


def _check_origin(path: Path, origin: Mapping[str, object]) -> dict[str, object]:
    """What results were measured with, without other weights, data or settings; images may differ."""
    file = origins.origin_file(path)
    if not file.exists():
        raise InputError(f"result file '{path}' has no '{file.name}' beside it that says how it was measured; {_MOVE}")
    before = {origins.IMAGES: origin.get(origins.IMAGES)} | origins.read_origin(path, advice=_MOVE)
    if (key := origins.changed(before, origin)) not in (None, origins.IMAGES):
        raise InputError(f"result file '{path}' was measured with {key} {before.get(key)}, now {origin[key]}; {_MOVE}")
    return before

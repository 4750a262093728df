"""`--eval`: evaluate every stitch of trained weights into the ledger, or a plain model."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path

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
from stitchkit.training.examples import write_examples
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


class Evaluation:
    """Of a plain model: its figures go into the log, and the accuracy of each class into a table.

    Making it loads the weights, and checks what is wanted against the results so far; nothing is written. Every rank
    makes one.

    Attributes:
        origin: All that the figures depend on.
    """

    file = PER_CLASS

    def __init__(self, session: Session):
        recipe, self.session, self.path = session.recipe, session, session.folder / self.file
        loads = bool(recipe.run.resume)
        self.content, digest = load_weights(session, ema=recipe.optim.model_ema) if loads else ({}, "")
        if recipe.run.bank_images and as_timm(session.model).num_classes:
            raise InputError("--bank-images requires networks without classes; omit it, or add --num-classes 0")
        self.origin = origins.origin_of(recipe, digest) | self._own_origin()
        images = session.loaders.validation.dataset
        self.origin[origins.IMAGES] = from_primary(session.world, lambda: images_digest(images))

    def _own_origin(self) -> dict[str, object]:
        """What the figures depend on beside the weights, data and settings of all evaluations."""
        return {key: self.session.recipe.flat()[key] for key in _OF_A_MODEL}

    def run(self) -> None:
        """Evaluate, and write the results; every rank calls this."""
        from_primary(self.session.world, self._begin)
        if self.path.exists():
            _logger.info("'%s' of an earlier evaluation is replaced", self.path)
        session, judged = self.session, JudgedAnswers(self.session)
        net = renewed_copy(session) if session.recipe.run.recalibrate_bn else session.model
        images = judged.evaluate(judged.networks(net, {0: "the model"}, run_network(net).each([0])), "evaluation")
        _logger.info("%s", json.dumps({"model": session.recipe.model.model, **images.figures(0)}))
        from_primary(session.world, lambda: judged.keep_classes(images, {"acc1": 0}))

    def _begin(self) -> None:
        """Begin the log of an evaluation, and save its settings and what its figures depend on."""
        self.session.save_settings("eval_args.yaml")
        begin_log(self.session.folder)
        weights = self.session.recipe.run.resume or "the initial weights; --resume chooses a checkpoint"
        _logger.info("evaluating %s", weights)
        origins.write_origin(self.path, self.origin)


class StitchEvaluation(Evaluation):
    """Of an SN-Net: every stitch that the ledger lacks, in one pass over the images.

    Results of other weights or data are left as they are.
    """

    file = LEDGER

    def __init__(self, session: Session, model: SNNet):
        self._model, self._ledgers = model, list[Ledger]()  # on the primary rank: others may not see the file
        super().__init__(session)
        chosen = session.recipe.run.eval_stitches
        wanted = [*model.space.ids] if chosen is None else model.space.select(chosen)
        self._missing = from_primary(session.world, lambda: self._find_missing(wanted))

    def _own_origin(self) -> dict[str, object]:
        bank = {} if self._model.num_classes else origins.of_the_bank(self.session.recipe)
        return {**bank, "by_agreement": self.session.by_agreement}

    def _find_missing(self, wanted: Sequence[int]) -> list[int]:
        ledger = Ledger(self.path, self._model.space, uncompiled(self._model)(Profiler(self._model).cost))
        self._ledgers.append(ledger)
        if ledger.rows:
            before = _check_origin(self.path, self.origin)
            judged_of(self.session).check_beside(ledger)
            if before[origins.IMAGES] != self.origin[origins.IMAGES]:  # only now: hits say which image is another
                raise InputError(
                    f"result file '{self.path}' was measured on other images: the validation images have changed "
                    f"since, in names, labels, sizes or content; {_MOVE}"
                )
        return [cfg_id for cfg_id in wanted if cfg_id in ledger.missing]

    def run(self) -> None:
        """Evaluate, and write the results; every rank calls this."""
        session, model, missing, ledgers = self.session, self._model, self._missing, self._ledgers
        from_primary(session.world, self._begin)
        keeps_anchors = freezes_anchors(self.content)
        norms = give_statistics(session, model, missing, ledgers, self.origin, keeps_anchors=keeps_anchors)
        numbers = count(1)
        for scores in self._judged() if missing else ():
            for ledger in ledgers:
                for cfg_id, figures in scores.items():
                    ledger.append(cfg_id, {**figures, **norms.get(cfg_id, {})})
            for cfg_id, figures in scores.items():
                words = "  ".join(f"{key} {value:.2f}" for key, value in figures.items() if key not in _UNSAID)
                _logger.info(
                    "stitch %d/%d  cfg_id %d  %s  %s", next(numbers), len(missing), cfg_id, model.space[cfg_id], words
                )
        if model.route_head.is_shared:
            uncompiled(model)(write_examples)(session, model, ledgers)
        # The other ranks wait, since their callers read the ledger next.
        from_primary(session.world, lambda: [*map(self._finish, ledgers)])

    def _judged(self) -> Iterator[Mapping[int, Mapping[str, float]]]:
        if self._model.num_classes:
            return judge_stitches(self.session, self._model, self._missing, self.origin, self._ledgers)
        return Judge(self.session, self._model).stitches(self._missing)

    def _finish(self, ledger: Ledger) -> None:
        remove_progress(self.session.folder)
        add_intervals(ledger.rows, compared_beside(ledger.path, metric_of(ledger.rows)))
        ledger.rewrite()
        batch_size = self.session.recipe.run.latency
        if batch_size and ledger.rows:  # all of them: separate runs are not comparable
            _logger.info("measuring the latency of each stitch in turns, for a minute or at least seven rounds")
            with uncompiled(self._model):
                summary = add_latencies(ledger.rows, self._model, batch_size=batch_size)
            ledger.rewrite()
            _logger.info("%s", summary)
        front = command("stitchkit", "pareto", ledger.path)
        _logger.info("%s has %s; the front: %s", ledger.path, counted(len(ledger.rows), "stitch"), front)


def evaluation_of(session: Session) -> Evaluation:
    """The evaluation of a run's network."""
    model = session.model
    return StitchEvaluation(session, model) if isinstance(model, SNNet) else Evaluation(session)


def _check_origin(path: Path, origin: Mapping[str, object]) -> dict[str, object]:
    """What results were measured with, without other weights, data or settings; images may differ."""
    file = origins.origin_file(path)
    if not file.exists():
        raise InputError(f"result file '{path}' has no '{file.name}' beside it that says how it was measured; {_MOVE}")
    before = {origins.IMAGES: origin.get(origins.IMAGES)} | origins.read_origin(path, advice=_MOVE)
    if (key := origins.changed(before, origin)) not in (None, origins.IMAGES):
        raise InputError(f"result file '{path}' was measured with {key} {before.get(key)}, now {origin[key]}; {_MOVE}")
    return before

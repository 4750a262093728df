"""`--eval` of networks with classes: which images each stitch classifies correctly, or as its end anchor does."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch.utils.data import IterableDataset

from stitchkit.data.batches import Batch, Loader
from stitchkit.data.labelled_images import image_labels, image_names
from stitchkit.data.unlabelled import has_labels
from stitchkit.data.unreadable import NO_CLASS, CheckedImages
from stitchkit.display import counted
from stitchkit.distributed import from_primary
from stitchkit.errors import InputError
from stitchkit.measure.agreement import AnswerAgreement, compare_answers
from stitchkit.measure.evaluate import Answers, PartialAnswers, Score, batches_of, evaluate
from stitchkit.measure.hits import Hits, hits_beside, hits_file, write_hits
from stitchkit.measure.ledger import LEDGER, Ledger
from stitchkit.measure.metric import ACCURACY, AGREE
from stitchkit.measure.two_stage import KEEP_WITHIN, stratified_part, survivors
from stitchkit.model.onepass import OnePass
from stitchkit.model.snnet import SNNet
from stitchkit.networks.timm_model import as_timm
from stitchkit.training.data import create_part_loader
from stitchkit.training.session import Session

_logger = logging.getLogger(__name__)

_MIB = 2**20


Scores: TypeAlias = "dict[int, Score] | dict[int, AnswerAgreement]"
"""What stitches are worth by labels, or by the answers of the anchors in which they end."""


class _Round(NamedTuple):
    """The images of a pass, and the name of the stage in files of progress."""

    loader: Loader
    name: str = "whole"


class Answering:
    """Evaluates stitches of an SN-Net by their logits; every rank makes one, and goes through the same stitches.

    Args:
        session: The run.
        model: Its SN-Net.
        origin: All that the figures depend on.
        ledgers: The ledger on the primary rank, which keeps the hits beside it; none on the others.
    """

    def __init__(self, session: Session, model: SNNet, origin: Mapping[str, object], ledgers: Sequence[Ledger]):
        self._session, self._model, self._ledgers, self._origin = session, model, ledgers, origin

    def stitches(self, cfg_ids: Sequence[int]) -> Iterator[Scores]:
        """The scores of stitches, after one pass over the images.

        With `--eval-images`, those that the first images put off the front come last. Hits are kept before scores are
        given, so that what is in the ledger has them.
        """
        if not cfg_ids:
            return
        loader = self._session.loaders.validation
        if isinstance(loader.dataset, IterableDataset):
            _logger.info(
                "streamed images have no order, so no hits are kept, and stitches are not compared image by image"
            )
        if part := self._part():
            yield from self._in_two_stages(cfg_ids, part)
            return
        yield self._kept(cfg_ids, self._answers(cfg_ids, _Round(loader)))
        self._partial().remove()  # only now: the ledger has all rows

    def _part(self) -> list[int]:
        """The numbers of the images that come first; empty if all come at once."""
        images, run = self._session.loaders.validation.dataset, self._session.recipe.run
        if run.eval_images is None:
            return []
        if run.eval_images >= len(images):
            _logger.info("--eval-images %d: there are %d, so there is one stage", run.eval_images, len(images))
            return []
        if 100 / run.eval_images > (KEEP_WITHIN if run.keep_within is None else run.keep_within):
            _logger.warning(
                "one of %s is %.2g points, more than --keep-within: only what no cheaper stitch beats is kept; raise "
                "either", counted(run.eval_images, "image"), 100 / run.eval_images,
            )  # fmt: skip
        labels = image_labels(images.dataset)
        if labels is None:
            _logger.info(
                "labels are known only from reading the images, so the first ones are drawn regardless of classes"
            )
        return stratified_part(labels or [0] * len(images), run.eval_images, run.seed)

    def _in_two_stages(self, cfg_ids: Sequence[int], part: Sequence[int]) -> Iterator[Scores]:
        """The scores on all images of the stitches that may be on the front, then those of the others on a part."""
        world, images = self._session.world, self._session.loaders.validation.dataset
        progress = PartialAnswers(self._session.folder / f"{LEDGER}.first", {**self._origin, "part": part})
        first, judged = self._first_stage(cfg_ids, part, progress)
        left = from_primary(world, lambda: self._left(first, judged, len(images)))
        rest = sorted({*range(len(images))}.difference(part))
        stage = _Round(self._loader_of(rest), "second")
        if chosen := [cfg_id for cfg_id in cfg_ids if cfg_id in left]:
            answers = first.of([*map(judged.index, chosen)]) + self._answers(chosen, stage)
            yield self._kept(chosen, answers.in_order([*part, *rest]))
            self._partial().remove()
        if dropped := [cfg_id for cfg_id in cfg_ids if cfg_id not in left]:
            yield self._kept(dropped, first.of([*map(judged.index, dropped)]), part)
        if world.is_primary:
            progress.remove()

    def _first_stage(
        self, cfg_ids: Sequence[int], part: Sequence[int], progress: PartialAnswers
    ) -> tuple[Answers, list[int]]:
        """The answers of stitches to the first images, and their `cfg_id`s; they are saved when they are complete.

        Among them are those whose rows an earlier run had already written when it was killed.
        """
        world, stage = self._session.world, _Round(self._loader_of(part), "first")
        found = from_primary(world, lambda: progress.restore(self._num_classes))
        if chosen := [cfg_id for cfg_id in cfg_ids if found is None or cfg_id not in found[1]]:
            answers = self._answers(chosen, stage)
            found = (answers, chosen) if found is None else (found[0].beside(answers, part), [*found[1], *chosen])
            if world.is_primary:
                progress.save(*found)
            self._partial().remove()
        assert found is not None, "there is a stitch to evaluate"
        return found

    def _left(self, first: Answers, judged: Sequence[int], images: int) -> list[int]:
        """The stitches that may be on the front after the first images; the log says what that saves."""
        (ledger,), run = self._ledgers, self._session.recipe.run
        costs = [ledger.cost(cfg_id).flops for cfg_id in judged]
        anchors = [place for place, cfg_id in enumerate(judged) if self._model.space[cfg_id].is_anchor]
        part, seen = len(first.labels), int((first.labels != NO_CLASS).sum())
        within = KEEP_WITHIN if run.keep_within is None else run.keep_within
        kept = survivors(first.right.sum(1).tolist(), seen, costs, within, anchors)
        share = (part * sum(costs) + (images - part) * sum(costs[place] for place in kept)) / (images * sum(costs))
        _logger.info(
            "%s of %d may be on the front after %s, or are anchors, and are evaluated on the other %s: "
            "%.0f %% of the FLOPs of evaluating all on all, one by one; the accuracies of the others are of %s",
            counted(len(kept), "stitch"), len(judged), counted(part, "image"), f"{images - part:,}", 100 * share,
            counted(part, "image"),
        )  # fmt: skip
        return [judged[place] for place in kept]

    def _loader_of(self, numbers: Sequence[int]) -> Loader:
        """A loader of some of the images."""
        session, config = self._session, as_timm(self._model).pretrained_cfg
        images = session.loaders.validation.dataset
        return create_part_loader(
            images, numbers, session.recipe, session.world, input_size=session.input_size, model_config=config
        )

    def _answers(self, cfg_ids: Sequence[int], stage: _Round) -> Answers:
        """The answers of stitches to the images of a stage.

        Every rank saves its own every few seconds, from which a killed evaluation resumes.
        """
        session, what, memory = self._session, counted(len(cfg_ids), "stitch"), self._session.recipe.run.eval_memory
        ends = [self._end(cfg_id) for cfg_id in cfg_ids] if session.by_agreement else []
        one_pass = OnePass(self._model, sorted({*cfg_ids, *ends}), memory=memory and memory * _MIB)

        def run(images: torch.Tensor) -> list[Any]:
            logits = one_pass(images)
            answers = [logits[cfg_id] for cfg_id in cfg_ids]
            return [*zip(answers, (logits[end] for end in ends), strict=True)] if ends else answers

        batches = batches_of(stage.loader, session.world, what)
        return evaluate(
            self._model, run, self._counted(batches) if ends else batches, device=session.world.device,
            autocast=session.autocast, count=len(cfg_ids), num_classes=self._num_classes,
            partial=self._partial(cfg_ids, stage.name), judge=compare_answers if ends else None,
        ).of_all_ranks()  # fmt: skip

    def _end(self, cfg_id: int) -> int:
        """The `cfg_id` of the anchor in which a stitch ends."""
        return [*self._model.views].index(self._model.space[cfg_id].end)

    def _counted(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Batches whose labels say only which images count: those that can be read, or all where none has a label."""
        images = self._session.loaders.validation.dataset
        is_labelled = not isinstance(images, CheckedImages) or has_labels(images.dataset)
        return ((x, labels.clamp(max=0) if is_labelled else torch.zeros_like(labels)) for x, labels in batches)

    @property
    def _num_classes(self) -> int:
        """Number of classes that are counted separately; by agreement one, of the images of which anchors are sure."""
        return 1 if self._session.by_agreement else self._model.num_classes

    def _partial(self, cfg_ids: Sequence[int] = (), stage: str = "") -> PartialAnswers:
        """The file with the answers of this rank so far."""
        data, world = self._session.recipe.data, self._session.world
        batch_size = data.validation_batch_size or data.batch_size
        of = {"cfg_ids": list(cfg_ids), "stage": stage, "world_size": world.size, "batch_size": batch_size}
        return PartialAnswers(self._session.folder / f"{LEDGER}.part{world.rank}", {**self._origin, **of})

    def _kept(self, cfg_ids: Sequence[int], answers: Answers, part: Sequence[int] = ()) -> Scores:
        """The scores of stitches, whose hits are added to those beside the ledger; `part` numbers images of a part."""
        images = self._session.loaders.validation.dataset
        if not isinstance(images, IterableDataset):
            numbers = part or range(len(images))
            for ledger in self._ledgers:
                metric = AGREE if self._session.by_agreement else ACCURACY
                _keep_hits(ledger, cfg_ids, answers, numbers, images, metric)
        if self._session.by_agreement:
            return dict(zip(cfg_ids, (AnswerAgreement.of(*sums) for sums in answers.sums.tolist()), strict=True))
        scores = [score._replace(is_part=bool(part)) for score in answers.scores]
        return dict(zip(cfg_ids, scores, strict=True))


def remove_progress(folder: Path) -> None:
    """Remove what a finished evaluation does not need: also that of a killed one, which may have had more ranks."""
    for path in [*folder.glob(f"{LEDGER}.part*"), folder / f"{LEDGER}.first"]:
        path.unlink(missing_ok=True)


def _keep_hits(
    ledger: Ledger, cfg_ids: Sequence[int], answers: Answers, numbers: Sequence[int], images: CheckedImages,
    metric: str,
) -> None:  # fmt: skip
    """Add the hits of stitches on the images of these numbers to the file beside their ledger."""
    before, names = _hits_of_rows(ledger), image_names(images.dataset)
    # The labels of images that these stitches have not seen are known from others, such as the anchors.
    labels = np.full(len(images), NO_CLASS) if before is None else before.labels.copy()
    right = np.zeros((len(cfg_ids), len(images)), bool)
    seen = np.zeros_like(right)
    labels[numbers] = answers.labels.numpy()
    right[:, numbers] = answers.right.numpy()
    seen[:, numbers] = labels[numbers] != NO_CLASS
    hits = Hits(tuple(cfg_ids), right, seen, labels, names, metric)
    write_hits(hits_file(ledger.path), before.with_more(hits) if before else hits)


def _hits_of_rows(ledger: Ledger) -> Hits | None:
    """The hits of the stitches in a ledger; those of an earlier one, which was removed, are not joined."""
    hits = hits_beside(ledger.path) if ledger.rows else None
    return hits and hits.of([row["cfg_id"] for row in ledger.rows if hits.has([row["cfg_id"]])])


def check_hits_beside(ledger: Ledger, images: CheckedImages, *, by_agreement: bool) -> None:
    """Refuse, before hours of evaluation, hits that are damaged or of other images than these."""
    hits = _hits_of_rows(ledger)
    if hits is None or isinstance(images, IterableDataset):
        return
    known = None if by_agreement else image_labels(images.dataset)
    labels = np.array(known or [NO_CLASS] * len(images))
    nothing = np.zeros((0, len(images)), bool)
    if found := hits.other_images(Hits((), nothing, nothing, labels, image_names(images.dataset))):
        raise InputError(
            f"'{hits_file(ledger.path)}' is of other images: {found}; choose another --experiment or move the ledger "
            f"'{ledger.path}' away"
        )

"""`--eval`: which images each stitch classifies correctly, or as its end anchor does; of networks without classes, the
agreement of features, k-NN and a linear probe.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset

from stitchkit.data.batches import Batch, Loader
from stitchkit.data.labelled_images import image_labels, image_names, numbered
from stitchkit.data.source import is_unlabelled
from stitchkit.data.unlabelled import has_labels
from stitchkit.data.unreadable import NO_CLASS, CheckedImages
from stitchkit.display import counted
from stitchkit.errors import InputError
from stitchkit.measure.answers import Accuracy, AnswerAgreement
from stitchkit.measure.evaluate import Networks, Unfinished, batches_of, evaluate
from stitchkit.measure.features import Collected, collect, judge_in_turns
from stitchkit.measure.ledger import LEDGER, Ledger
from stitchkit.measure.per_class import write_per_class
from stitchkit.measure.per_image import PerImage
from stitchkit.model.onepass import OnePass
from stitchkit.model.snnet import SNNet
from stitchkit.networks.mode import evaluating
from stitchkit.networks.timm_model import as_timm
from stitchkit.settings.recipe import Recipe
from stitchkit.training.data import BANK_IMAGES, create_bank_loader
from stitchkit.training.inputs import source_of
from stitchkit.training.session import Session

_logger = logging.getLogger(__name__)

_MIB = 2**20


class Answering:
    """Evaluates stitches of an SN-Net by their logits; every rank makes one, for the same stitches.

    Args:
        origin: All that the figures depend on.
        ledgers: The ledger on the primary rank, which keeps the hits beside it; none on the others.
    """

    def __init__(self, session: Session, model: SNNet, origin: Mapping[str, object], ledgers: Sequence[Ledger]):
        self._session, self._model, self._ledgers, self._origin = session, model, ledgers, origin

    def stitches(self, cfg_ids: Sequence[int]) -> Iterator[dict[int, dict[str, float]]]:
        """The figures of stitches, after one pass over the images.

        Hits and classes are kept before figures are given, so that what is in the ledger has them.
        """
        if not cfg_ids:
            return
        if isinstance(self._session.loaders.validation.dataset, IterableDataset):
            _logger.info("streamed images have no order, so stitches are not compared image by image")
        data, world = self._session.recipe.data, self._session.world
        batch_size = data.validation_batch_size or data.batch_size
        of = {**self._origin, "cfg_ids": [*cfg_ids], "world_size": world.size, "batch_size": batch_size}
        partial = Unfinished(self._session.folder / f"{LEDGER}.part{world.rank}", of)
        images = self._judged(cfg_ids, partial)
        for ledger in self._ledgers:
            self._keep(images, ledger)
        yield {cfg_id: images.figures(cfg_id) for cfg_id in cfg_ids}
        partial.remove()  # only now: the ledger has all rows

    def _judged(self, cfg_ids: Sequence[int], partial: Unfinished) -> PerImage:
        """What stitches answer to the images; every rank saves its own every few seconds, to resume from them."""
        session, model = self._session, self._model
        anchors, loader, world = [*model.views], session.loaders.validation, session.world
        ends = [anchors.index(model.space[cfg_id].end) for cfg_id in cfg_ids] if session.by_agreement else []
        one_pass = _one_pass(session, model, {*cfg_ids, *ends})
        # Labels then only say which images count: those that can be read, or all where none has a label.
        is_labelled = not isinstance(loader.dataset, CheckedImages) or has_labels(loader.dataset.dataset)

        def run(images: torch.Tensor) -> list[Any]:
            logits = one_pass(images)
            answers = [logits[cfg_id] for cfg_id in cfg_ids]
            return [*zip(answers, (logits[end] for end in ends), strict=True)] if ends else answers

        def batches(done: int) -> Iterator[Batch]:
            for images, labels in batches_of(loader, world, counted(len(cfg_ids), "stitch"), done=done):
                known = labels.clamp(max=0) if is_labelled else torch.zeros_like(labels)
                yield images, known if ends else labels

        networks, score = Networks(model, cfg_ids, run), _score(session)
        return evaluate(networks, batches, score, device=world.device, autocast=session.autocast, partial=partial)

    def _keep(self, images: PerImage, ledger: Ledger) -> None:
        """Add what stitches answer to the files beside the ledger."""
        session, dataset = self._session, self._session.loaders.validation.dataset
        if not isinstance(dataset, IterableDataset):
            replace(images, names=image_names(dataset.dataset)).keep(ledger)
        if not session.by_agreement:
            networks = {str(cfg_id): cfg_id for cfg_id in images.cfg_ids}
            kept = [str(row["cfg_id"]) for row in ledger.rows]
            write_per_class(session.folder, classes_of(session), images, networks, keep=kept)


def classes_of(session: Session) -> Sequence[str]:
    """Names of the classes, which are numbers if the data have no names."""
    return session.classes or numbered(as_timm(session.model).num_classes)


def _one_pass(session: Session, model: SNNet, cfg_ids: Collection[int]) -> OnePass:
    memory = session.recipe.run.eval_memory
    return OnePass(model, sorted(cfg_ids), memory=memory and memory * _MIB)


def remove_progress(folder: Path) -> None:
    """Remove what a finished evaluation does not need: also that of a killed one, which may have had more ranks."""
    for path in folder.glob(f"{LEDGER}.part*"):
        path.unlink(missing_ok=True)


def check_hits_beside(session: Session, ledger: Ledger) -> None:
    """Refuse, before hours of evaluation, hits that are damaged or of other images than those of the run."""
    images, score = session.loaders.validation.dataset, _score(session)
    before = PerImage.of_rows(ledger, score.metric)
    if before is None or isinstance(images, IterableDataset):
        return
    known = None if session.by_agreement else image_labels(images.dataset)
    labels = np.array(known or [NO_CLASS] * len(images))[:, None]
    nothing = np.zeros((0, len(images), 1), bool)
    own = replace(PerImage.of_all((), score, nothing, labels), names=image_names(images.dataset))
    if difference := before.other_images(own):
        advice = f"choose another --experiment or move the ledger '{ledger.path}' away"
        raise InputError(f"'{before.file(ledger.path)}' is of other images: {difference}; {advice}")


def _score(session: Session) -> Accuracy | AnswerAgreement:
    return AnswerAgreement() if session.by_agreement else Accuracy()


class Judge:
    """Judges the features of an SN-Net without classes; every rank makes one, and calls the same methods."""

    def __init__(self, session: Session, model: SNNet):
        self._session, self._model = session, model
        self._bank_images = session.recipe.run.bank_images or BANK_IMAGES
        self._bank: Loader | None = None
        if is_unlabelled(source_of(session.recipe), session.recipe.data.train_split):
            _logger.info("the images have no labels, so k-NN and linear probe are left out")
            return
        try:
            self._bank = create_bank_loader(
                session.recipe, session.world, input_size=session.input_size, model_config=model.pretrained_cfg
            )
        except InputError as error:
            if session.recipe.data.train_split != Recipe().data.train_split:
                raise
            _logger.warning("no labelled training images, so k-NN and linear probe are left out: %s", error)

    def stitches(self, cfg_ids: Sequence[int]) -> Iterator[dict[int, dict[str, float]]]:
        """The scores of stitches.

        Features are collected in one pass over the validation images, and one over the labelled images. Then one stitch
        after the other is judged.
        """
        self._say_bytes(cfg_ids)
        every = _one_pass(self._session, self._model, {*cfg_ids, *map(self._end, cfg_ids)})
        judged = self._collect(every, self._session.loaders.validation)
        own = _one_pass(self._session, self._model, cfg_ids)
        bank = self._collect(own, self._bank) if self._bank else None
        targets = {cfg_id: judged.features.get(self._end(cfg_id)) for cfg_id in cfg_ids}
        for scores in judge_in_turns(cfg_ids, judged, targets, bank, self._session.world):
            yield {cfg_id: score.figures for cfg_id, score in scores.items()}

    def _end(self, cfg_id: int) -> int:
        return [*self._model.views].index(self._model.space[cfg_id].end)

    def _collect(self, run: OnePass, loader: Loader) -> Collected[int]:
        session, is_bank = self._session, loader is self._bank
        batches: Iterator[Batch] = batches_of(loader, session.world, "labelled images" if is_bank else "features")
        if is_bank and isinstance(loader.dataset, IterableDataset):
            batches = _first(batches, -(-self._bank_images // session.world.size))
        with evaluating(self._model):
            return collect(run, batches, autocast=session.autocast)

    def _say_bytes(self, cfg_ids: Sequence[int]) -> None:
        images = len(self._session.loaders.validation.dataset)
        labelled = min(len(self._bank.dataset), self._bank_images) if self._bank else 0
        with torch.no_grad(), evaluating(self._model), self._session.autocast():
            blank = next(iter(self._model.views.values())).blank_image()
            widths = {end: self._model(blank, end).shape[1] for end in {*map(self._end, cfg_ids)}}
        size = sum(2 * widths[self._end(cfg_id)] + 4 for cfg_id in cfg_ids) * (images + labelled)
        _logger.info(
            "features of %s on %s and %s to compare with take %s MiB of memory, over all ranks; --bank-images or "
            "--eval-stitches make it less",
            counted(len(cfg_ids), "stitch"), counted(images, "image"), f"{labelled:,}", f"{size / _MIB:,.1f}",
        )  # fmt: skip


def _first(batches: Iterator[Batch], count: int) -> Iterator[Batch]:
    for images, labels in batches:
        yield images[:count], labels[:count]
        count -= len(images)
        if count <= 0:
            return

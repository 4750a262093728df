"""What a run judges on its validation images: answers, predictions for pixels, or features."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.utils.data import IterableDataset

from stitchkit.data.batches import Batch, Loader
from stitchkit.data.labelled_images import image_labels, image_names, numbered
from stitchkit.data.source import is_unlabelled
from stitchkit.data.unlabelled import has_labels
from stitchkit.data.unreadable import NO_CLASS, CheckedImages
from stitchkit.display import counted
from stitchkit.distributed import World, from_primary
from stitchkit.engine.recovery import advising_evaluation
from stitchkit.engine.settings import Autocast
from stitchkit.errors import InputError, NotFinite
from stitchkit.measure.answers import Accuracy, AnswerAgreement, BatchScore
from stitchkit.measure.evaluate import Networks, Unfinished, batches_of, evaluate
from stitchkit.measure.features import Collected, collect, judge_in_turns
from stitchkit.measure.ledger import LEDGER, Ledger, Row
from stitchkit.measure.per_class import write_per_class
from stitchkit.measure.per_image import PerImage
from stitchkit.model.onepass import OnePass
from stitchkit.model.snnet import SNNet
from stitchkit.networks.mode import evaluating
from stitchkit.networks.timm_model import as_timm
from stitchkit.progress import progress
from stitchkit.settings.dense_recipe import DenseRecipe
from stitchkit.settings.recipe import Recipe
from stitchkit.tasks.table import TASKS
from stitchkit.tasks.windows import Merged, Run, Windows
from stitchkit.training.data import BANK_IMAGES, create_bank_loader
from stitchkit.training.inputs import source_of
from stitchkit.training.pair_data import PairLoader
from stitchkit.training.session import Session

_logger = logging.getLogger(__name__)

_MIB = 2**20


class Judged(ABC):
    """What networks are judged by: a score, and the images of the validation split."""

    def __init__(self, score: BatchScore, world: World, autocast: Autocast):
        self.score, self.world, self.autocast = score, world, autocast

    @abstractmethod
    def batches(self, what: str, after_batch: Callable[[], None], done: int) -> Iterator[tuple[Any, Any]]:
        """Images and targets of this rank after so many images; `after_batch` runs equally often on all ranks."""

    @abstractmethod
    def networks(self, module: nn.Module, names: Mapping[int, str], run: Run) -> Networks:
        """Networks in a module that `run` runs, by `cfg_id` what messages call them."""

    @property
    @abstractmethod
    def images(self) -> PerImage | None:
        """What is known of the images without reading them, and of no network.

        None if they have no order, so that networks are not compared image by image.
        """

    def _images(self, names: Sequence[str], truth: npt.NDArray[Any]) -> PerImage:
        nothing = PerImage.of_all((), self.score, np.zeros((0, len(truth), self.score.own)), truth)
        return replace(nothing, names=tuple(names))

    def evaluate(
        self, networks: Networks, what: str, after_batch: Callable[[], None] = lambda: None, *,
        unfinished: Unfinished | None = None,
    ) -> PerImage:  # fmt: skip
        """What networks give on the images of all ranks; `what` names the progress."""
        batches = partial(self.batches, what, after_batch)
        device, autocast = self.world.device, self.autocast
        return evaluate(networks, batches, self.score, device=device, autocast=autocast, unfinished=unfinished)

    def stitches(self, model: SNNet, cfg_ids: Sequence[int], memory: int | None) -> Networks:
        """Stitches of an SN-Net, which run in one pass."""
        names = {cfg_id: f"the network with cfg_id {cfg_id}" for cfg_id in cfg_ids}
        return self.networks(model, names, OnePass(model, sorted(cfg_ids), memory=memory).outputs)

    def keep(self, images: PerImage, ledger: Ledger) -> None:
        """Add what networks gave to the files beside a ledger."""
        if (known := self.images) is not None:
            replace(images, names=known.names).keep(ledger)

    def check_beside(self, ledger: Ledger) -> None:
        """Refuse, before hours of evaluation, a file beside a ledger that is damaged or of other images."""
        before, known = PerImage.of_rows(ledger, self.score.metric), self.images
        if before and known and (difference := before.other_images(known)):
            advice = f"choose another --experiment or move the ledger '{ledger.path}' away"
            raise InputError(f"'{before.file(ledger.path)}' is of other images: {difference}; {advice}")


class JudgedAnswers(Judged):
    """Logits, by the labels of images."""

    def __init__(self, session: Session, score: BatchScore | None = None):
        self.loader, self._session = session.loaders.validation, session
        super().__init__(score or Accuracy(), session.world, session.autocast)

    def batches(self, what: str, after_batch: Callable[[], None], done: int) -> Iterator[Batch]:
        """Images `[B, C, H, W]` and labels `[B]`."""
        return batches_of(self.loader, self.world, what, after_batch, done=done)

    def networks(self, module: nn.Module, names: Mapping[int, str], run: Run) -> Networks:
        """Networks whose logits for whole images `run` gives."""
        return Networks(module, [*names], lambda images: run([images]))

    @property
    def images(self) -> PerImage | None:
        """Their names, and labels as far as the data set knows them and they count; None of a stream."""
        dataset = self.loader.dataset
        if isinstance(dataset, IterableDataset):
            return None
        known = None if self._session.by_agreement else image_labels(dataset.dataset)
        return self._images(image_names(dataset.dataset), np.array(known or [NO_CLASS] * len(dataset))[:, None])

    def keep(self, images: PerImage, ledger: Ledger) -> None:
        """Also the accuracy of each class."""
        super().keep(images, ledger)
        self.keep_classes(images, {str(cfg_id): cfg_id for cfg_id in images.cfg_ids}, ledger.rows)

    def keep_classes(self, images: PerImage, networks: Mapping[str, int], rows: Sequence[Row] = ()) -> None:
        """Write the accuracies of classes of networks, by column, and keep those of networks with rows in a ledger."""
        classes = self._session.classes or numbered(as_timm(self._session.model).num_classes)
        write_per_class(self._session.folder, classes, images, networks, keep=[str(row["cfg_id"]) for row in rows])


class JudgedAgreement(JudgedAnswers):
    """Logits of stitches, by those of their end anchors; labels only say which images count."""

    def __init__(self, session: Session):
        super().__init__(session, AnswerAgreement())

    def batches(self, what: str, after_batch: Callable[[], None], done: int) -> Iterator[Batch]:
        """Images, with label 0 if they can be read, or all of them where none has a label; else -1."""
        dataset = self.loader.dataset
        is_labelled = not isinstance(dataset, CheckedImages) or has_labels(dataset.dataset)
        for images, labels in super().batches(what, after_batch, done):
            yield images, labels.clamp(max=0) if is_labelled else torch.zeros_like(labels)

    def stitches(self, model: SNNet, cfg_ids: Sequence[int], memory: int | None) -> Networks:
        """Stitches with their end anchors."""
        ends = {cfg_id: end_of(model, cfg_id) for cfg_id in cfg_ids}
        one_pass = OnePass(model, sorted({*ends, *ends.values()}), memory=memory)

        def run(images: torch.Tensor) -> Iterator[tuple[int, tuple[torch.Tensor, torch.Tensor]]]:
            logits = one_pass(images)
            return ((cfg_id, (logits[cfg_id], logits[end])) for cfg_id, end in ends.items())

        return Networks(model, cfg_ids, run)

    def keep_classes(self, *_: object) -> None:
        """Write none: without labels, no class has an accuracy."""


class JudgedMaps(Judged):
    """Predictions for pixels, by masks or depth maps, in as many windows at a time as a batch has images.

    Args:
        num_classes: Number of classes; for depth, any number.
        sides: Height and width of the networks' images.
    """

    def __init__(
        self, loader: PairLoader, settings: DenseRecipe, num_classes: int, sides: tuple[int, int], world: World,
        autocast: Autocast,
    ):  # fmt: skip
        super().__init__(TASKS[settings.task].score(settings, num_classes), world, autocast)
        self.loader, self.windows = loader, Windows.of_task(settings, sides)

    def batches(self, what: str, after_batch: Callable[[], None], done: int) -> Iterator[tuple[Any, Any]]:
        """Images `[C, H, W]` and targets `[H, W]`, each at its own size."""
        batches = self.loader.batches(done, after_batch)
        for pairs in progress(batches, self.world, what, unit="batches", total=len(self.loader)):
            images, targets = zip(*pairs, strict=True)
            yield images, targets

    def networks(self, module: nn.Module, names: Mapping[int, str], run: Run) -> Networks:
        """Networks whose outputs for windows `run` gives; their outputs for images are checked as they are merged."""

        def checked(name: str, merged: Merged, targets: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
            for output in merged(targets):
                if not output.isfinite().all():  # the class of NaN would be 0
                    raise NotFinite(f"the outputs of {name} are not finite")
                yield output

        def outputs(images: Sequence[torch.Tensor]) -> Iterator[tuple[int, Merged]]:
            for cfg_id, merged in self.windows.outputs(run, images, self.loader.batch_size):
                yield cfg_id, partial(checked, names[cfg_id], merged)

        return Networks(module, [*names], outputs)

    @property
    def images(self) -> PerImage:
        """Their names; maps are not read."""
        names = self.loader.dataset.names
        return self._images(names, np.zeros((len(names), self.score.truth), np.int64))


def judged_of(session: Session) -> Judged:
    """What the networks of a run with classes, or with predictions for pixels, are judged by."""
    loader = session.loaders.validation
    if not isinstance(loader, PairLoader):
        return JudgedAgreement(session) if session.by_agreement else JudgedAnswers(session)
    sides, outputs = (session.input_size[1], session.input_size[2]), as_timm(session.model).num_classes
    return JudgedMaps(loader, session.recipe.dense, outputs, sides, session.world, session.autocast)


def judge_stitches(
    session: Session, model: SNNet, cfg_ids: Sequence[int], origin: Mapping[str, object], ledgers: Sequence[Ledger]
) -> Iterator[dict[int, dict[str, float]]]:
    """The figures of stitches, after one pass over the images.

    What they gave for images is kept before figures are given, so that what is in the ledger has it.

    Args:
        origin: All that the figures depend on.
        ledgers: The ledger on the primary rank, which has files beside it; none on the others.
    """
    judged, world, data = judged_of(session), session.world, session.recipe.data
    if judged.images is None:
        _logger.info("streamed images have no order, so stitches are not compared image by image")
    batch_size = data.validation_batch_size or data.batch_size
    of = {**origin, "cfg_ids": [*cfg_ids], "world_size": world.size, "batch_size": batch_size}
    unfinished = Unfinished(session.folder / f"{LEDGER}.part{world.rank}", of)
    networks = judged.stitches(model, cfg_ids, memory_of(session))
    with advising_evaluation():
        images = judged.evaluate(networks, counted(len(cfg_ids), "stitch"), unfinished=unfinished)
    from_primary(world, lambda: [*map(partial(judged.keep, images), ledgers)])
    yield {cfg_id: images.figures(cfg_id) for cfg_id in cfg_ids}
    unfinished.remove()  # only now: the ledger has all rows


def end_of(model: SNNet, cfg_id: int) -> int:
    """The `cfg_id` of the anchor that a stitch ends in."""
    return [*model.views].index(model.space[cfg_id].end)


def memory_of(session: Session) -> int | None:
    """Bytes for the activations of one pass, if the run limits them."""
    return (memory := session.recipe.run.eval_memory) and memory * _MIB


def remove_progress(folder: Path) -> None:
    """Remove what a finished evaluation does not need: also that of a killed one, which may have had more ranks."""
    for path in folder.glob(f"{LEDGER}.part*"):
        path.unlink(missing_ok=True)


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
        every = self._one_pass({*cfg_ids, *map(self._end, cfg_ids)})
        judged = self._collect(every, self._session.loaders.validation)
        own = self._one_pass(cfg_ids)
        bank = self._collect(own, self._bank) if self._bank else None
        targets = {cfg_id: judged.features.get(self._end(cfg_id)) for cfg_id in cfg_ids}
        for scores in judge_in_turns(cfg_ids, judged, targets, bank, self._session.world):
            yield {cfg_id: score.figures for cfg_id, score in scores.items()}

    def _end(self, cfg_id: int) -> int:
        return end_of(self._model, cfg_id)

    def _one_pass(self, cfg_ids: Collection[int]) -> OnePass:
        return OnePass(self._model, sorted(cfg_ids), memory=memory_of(self._session))

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

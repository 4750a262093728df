"""`--eval` of networks without classes: agreement, k-NN and linear probe of the feature of every stitch."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence

import torch
from torch.utils.data import IterableDataset

from stitchkit.data.batches import Batch, Loader
from stitchkit.data.source import is_unlabelled
from stitchkit.display import counted
from stitchkit.errors import InputError
from stitchkit.measure.evaluate import batches_of
from stitchkit.measure.features import Collected, FeatureScore, collect, judge_in_turns
from stitchkit.model.onepass import OnePass
from stitchkit.model.snnet import SNNet
from stitchkit.networks.mode import evaluating
from stitchkit.settings.recipe import Recipe
from stitchkit.training.data import BANK_IMAGES, create_bank_loader
from stitchkit.training.inputs import source_of
from stitchkit.training.session import Session

_logger = logging.getLogger(__name__)

_MIB = 2**20


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

    def stitches(self, cfg_ids: Sequence[int]) -> Iterator[dict[int, FeatureScore]]:
        """The scores of stitches.

        Features are collected in one pass over the validation images, and one over the labelled images. Then one stitch
        after the other is judged.
        """
        self._say_bytes(cfg_ids)
        every = self._one_pass({*cfg_ids, *map(self._end, cfg_ids)})
        judged = self._collect(every, self._session.loaders.validation)
        bank = self._collect(self._one_pass(cfg_ids), self._bank) if self._bank else None
        targets = {cfg_id: judged.features.get(self._end(cfg_id)) for cfg_id in cfg_ids}
        yield from judge_in_turns(cfg_ids, judged, targets, bank, self._session.world)

    def _end(self, cfg_id: int) -> int:
        """The `cfg_id` of the end anchor of a stitch."""
        return [*self._model.views].index(self._model.space[cfg_id].end)

    def _one_pass(self, cfg_ids: Collection[int]) -> OnePass:
        memory = self._session.recipe.run.eval_memory
        return OnePass(self._model, sorted(cfg_ids), memory=memory and memory * _MIB)

    def _collect(self, run: OnePass, loader: Loader) -> Collected[int]:
        session, is_bank = self._session, loader is self._bank
        batches: Iterator[Batch] = batches_of(loader, session.world, "labelled images" if is_bank else "features")
        if is_bank and isinstance(loader.dataset, IterableDataset):
            batches = _first(batches, -(-self._bank_images // session.world.size))
        with evaluating(self._model):
            return collect(run, batches, autocast=session.autocast)

    def _say_bytes(self, cfg_ids: Sequence[int]) -> None:
        """Log the memory that the features of stitches will take."""
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
    """The first `count` images."""
    for images, labels in batches:
        yield images[:count], labels[:count]
        count -= len(images)
        if count <= 0:
            return

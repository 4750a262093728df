"""`--eval` of networks without classes: agreement, k-NN and linear probe of the feature of every stitch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import torch
from torch import nn
from torch.utils.data import IterableDataset

from stitchkit.data.batches import Batch, Loader, some_images
from stitchkit.data.source import is_unlabelled
from stitchkit.display import counted
from stitchkit.errors import InputError
from stitchkit.measure.evaluate import batches_of
from stitchkit.measure.features import Collected, FeatureScore, Halved, collect, judge_in_turns
from stitchkit.model.create import snnet_options
from stitchkit.model.onepass import OnePass
from stitchkit.model.snnet import SNNet
from stitchkit.model.solve import fitted_self_stitch
from stitchkit.networks.mode import evaluating
from stitchkit.settings.recipe import Recipe
from stitchkit.training.data import BANK_IMAGES, create_bank_loader
from stitchkit.training.inputs import source_of
from stitchkit.training.session import Session

_logger = logging.getLogger(__name__)

_MIB = 2**20
_Run = Callable[[torch.Tensor], Mapping[int, torch.Tensor]]


class Judge:
    """Judges the features of an SN-Net without classes; every rank makes one, and calls the same methods.

    `cfg_ids` are the stitches to judge and the anchors to stitch to themselves.
    """

    def __init__(self, session: Session, model: SNNet, cfg_ids: Collection[int]):
        self._session, self._model = session, model
        self._bank_images = session.recipe.run.bank_images or BANK_IMAGES
        self._ends = sorted({self._end(cfg_id) for cfg_id in cfg_ids})
        self._targets: dict[int, Halved] = {}
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
        """The scores of stitches; call it first.

        Features are collected in one pass over the validation images, and one over the labelled images. Then one stitch
        after the other is judged.
        """
        if cfg_ids:
            self._say_bytes(cfg_ids)
        judged = self._collect(self._model, self._one_pass({*cfg_ids, *self._ends}), self._session.loaders.validation)
        self._targets = {end: judged.features[end] for end in self._ends if end in judged.features}  # of this rank
        bank = self._collect(self._model, self._one_pass(cfg_ids), self._bank) if cfg_ids and self._bank else None
        yield from self._scores(cfg_ids, judged, bank)

    def self_stitch(self, cfg_id: int) -> FeatureScore:
        """The score of an anchor that is cut in the middle and joined to itself in closed form."""
        settings, model, share = self._session.recipe.stitch, self._model, self._session.world.size
        assert self._session.config is not None, "SN-Nets have one"
        images = some_images(self._bank or self._session.loaders.validation, -(-settings.stitch_init_bs // share))
        anchor = [*model.views.values()][cfg_id]
        net = fitted_self_stitch(
            anchor, images, method=settings.ls_method, damping=settings.ls_damping,
            stitched_final_norm=model.stitched_final_norm, layer=snnet_options(self._session.config)["layer"],
        )  # fmt: skip

        def run(images: torch.Tensor) -> dict[int, torch.Tensor]:
            return {cfg_id: net(images)}

        judged = self._collect(net, run, self._session.loaders.validation)
        (scores,) = self._scores([cfg_id], judged, self._collect(net, run, self._bank) if self._bank else None)
        return scores[cfg_id]

    def _end(self, cfg_id: int) -> int:
        """The `cfg_id` of the end anchor of a stitch."""
        return [*self._model.views].index(self._model.space[cfg_id].end)

    def _one_pass(self, cfg_ids: Collection[int]) -> _Run:
        memory = self._session.recipe.run.eval_memory
        return OnePass(self._model, sorted(cfg_ids), memory=memory and memory * _MIB)

    def _collect(self, net: nn.Module, run: _Run, loader: Loader) -> Collected[int]:
        """The features of networks that are parts of `net`."""
        session, is_bank = self._session, loader is self._bank
        batches: Iterator[Batch] = batches_of(loader, session.world, "labelled images" if is_bank else "features")
        if is_bank and isinstance(loader.dataset, IterableDataset):
            batches = _first(batches, -(-self._bank_images // session.world.size))
        with evaluating(net):
            return collect(run, batches, autocast=session.autocast)

    def _scores(
        self, cfg_ids: Sequence[int], judged: Collected[int], bank: Collected[int] | None
    ) -> Iterator[dict[int, FeatureScore]]:
        targets = {cfg_id: self._targets.get(self._end(cfg_id)) for cfg_id in cfg_ids}
        return judge_in_turns(cfg_ids, judged, targets, bank, self._session.world)

    def _say_bytes(self, cfg_ids: Sequence[int]) -> None:
        """Log the memory that the features of stitches will take."""
        images = len(self._session.loaders.validation.dataset)
        labelled = min(len(self._bank.dataset), self._bank_images) if self._bank else 0
        with torch.no_grad(), evaluating(self._model), self._session.autocast():
            blank = next(iter(self._model.views.values())).blank_image()
            widths = {end: self._model(blank, end).shape[1] for end in self._ends}
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

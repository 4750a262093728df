"""Stitched routes with batch-norm statistics of their own, for an evaluation."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Iterator
from itertools import islice

import torch
from timm.utils import distribute_bn
from torch import nn

from stitchkit.display import counted
from stitchkit.measure.recalibrate import has_own_statistics, recalibrate
from stitchkit.model.snnet import SNNet
from stitchkit.settings.recipe import Recipe
from stitchkit.training.data import Loaders
from stitchkit.training.dense.data import PairLoader
from stitchkit.training.dense.windows import Windows
from stitchkit.training.session import Session

_logger = logging.getLogger(__name__)


def with_own_statistics(session: Session, model: SNNet, cfg_ids: Iterable[int]) -> list[int]:
    """The stitches that get batch-norm statistics of their own; the log says why."""
    if not (batches := session.recipe.run.recalibrate_bn):
        return []
    found = [cfg_id for cfg_id in cfg_ids if has_own_statistics(model, cfg_id)]
    if found:
        _logger.info(
            "batch-norm statistics of %s are recomputed for each, from %s: in training all routes share them, so they "
            "suit none of them; --recalibrate-bn 0 keeps those",
            counted(len(found), "route"), counted(batches, "training batch"),
        )  # fmt: skip
    return found


def recalibrated(session: Session, cfg_id: int | None) -> nn.Module:
    """A copy of one stitch, or of the plain model, with its own batch-norm statistics."""
    net = session.model.extract(cfg_id) if isinstance(session.model, SNNet) else copy.deepcopy(session.model)
    with session.autocast():
        recalibrate(net, calibration_images(session.recipe, session.loaders, session.input_size))
    if way := session.recipe.distributed.dist_bn:
        distribute_bn(net, session.world.size, way == "reduce")
    return net


def calibration_images(recipe: Recipe, loaders: Loaders, input_size: tuple[int, ...]) -> Iterator[torch.Tensor]:
    """Batches of training images `[B, C, H, W]` for batch-norm statistics; in dense prediction, of their windows."""
    loader, count = loaders.train, recipe.run.recalibrate_bn
    assert loader is not None, "recalibration opens the training split"
    if not isinstance(loader, PairLoader):
        return (images for images, _ in islice(loader, count))
    windows = Windows.of_task(recipe.dense, (input_size[1], input_size[2]))
    most = recipe.data.validation_batch_size or recipe.data.batch_size
    cuts = (windows.cut([image for image, _ in pairs]).windows for pairs in loader.batches())
    return (part for found in cuts for part in spread(found, most))


def spread(windows: torch.Tensor, most: int) -> Iterator[torch.Tensor]:
    """Windows `[W, C, h, w]` in portions of at most so many, each from all images: neighbours overlap."""
    count = -(-len(windows) // most)
    return (windows[first::count] for first in range(count))

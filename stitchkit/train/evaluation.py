"""`--eval`: every stitch of trained weights into the ledger."""

from __future__ import annotations

import copy
import json
import logging
from itertools import islice
from pathlib import Path
from typing import Any

import torch.distributed as dist
import yaml
from torch import nn

from stitchkit.errors import InputError
from stitchkit.measure.evaluate import Score, evaluate_stitch
from stitchkit.measure.ledger import Ledger
from stitchkit.measure.profile import Profiler
from stitchkit.measure.recalibrate import recalibrate
from stitchkit.model.snnet import SNNet
from stitchkit.train.checkpoint import fingerprint, load_weights
from stitchkit.train.data import without_padding
from stitchkit.train.loop import seed_epoch
from stitchkit.train.network import uncompiled
from stitchkit.train.optim import Autocast, create_precision
from stitchkit.train.progress import progress
from stitchkit.train.recipe import Recipe
from stitchkit.train.session import Session

_logger = logging.getLogger(__name__)

LEDGER = "stitches_res.txt"

# Settings that change the figures of a ledger.
_SETTINGS = (
    *("dataset", "val_split", "class_map", "input_key", "target_key", "val_num_samples", "num_classes", "img_size"),
    *("crop_pct", "interpolation", "mean", "std", "amp", "amp_dtype", "channels_last", "model_ema"),
    *("recalibrate_bn", "in_chans", "input_size", "input_img_mode", "gp", "bn_eps", "fast_norm", "model_dtype"),
)


def evaluate_stitches(session: Session) -> None:
    """Evaluate every stitch that the ledger lacks, or the plain model.

    Raises:
        InputError: If the checkpoint or the ledger belongs to something else; both are left as they are.
    """
    recipe, model, world = session.recipe, session.model, session.world
    if recipe.run.resume:
        load_weights(session, ema=recipe.optim.model_ema)
    autocast, _ = create_precision(recipe.optim, world.device)

    def score(cfg_id: int | None, what: str) -> Score:
        loader = session.loaders.validation
        batches = progress(without_padding(loader, world), world, what, unit="batch", total=len(loader))
        if recipe.run.recalibrate_bn:
            net = _recalibrated(session, cfg_id, autocast)
            return evaluate_stitch(net, None, batches, device=world.device, autocast=autocast)
        return evaluate_stitch(model, cfg_id, batches, device=world.device, autocast=autocast)

    if not isinstance(model, SNNet):
        figures = {"model": recipe.model.model, **score(None, "evaluation")._asdict()}
        _logger.info("%s", json.dumps(figures))
        return
    ledger = _open_ledger(session, model) if world.is_primary else None
    # The other machines may not see the file, so the primary says what is missing.
    missing = [ledger.missing if ledger else []]
    dist.broadcast_object_list(missing)
    last = len(model.space) - 1
    for cfg_id in missing[0]:
        figures = score(cfg_id, f"stitch {cfg_id}/{last}")._asdict()
        if ledger is not None:
            ledger.append(cfg_id, figures)
        _logger.info("stitch %d/%d  %s  acc1 %.2f", cfg_id, last, model.space[cfg_id], figures["acc1"])
    if ledger is not None:
        _logger.info("%d stitches are in %s; their front: stitchkit pareto %s", len(ledger.rows), *2 * [ledger.path])


def _recalibrated(session: Session, cfg_id: int | None, autocast: Autocast) -> nn.Module:
    """A copy of one stitch, or of the plain model, with batch-norm statistics of its own."""
    run, loader = session.recipe.run, session.loaders.train
    assert loader is not None, "recalibration opens the training split"
    net = session.model.extract(cfg_id) if isinstance(session.model, SNNet) else copy.deepcopy(session.model)
    seed_epoch(run.seed, session.world.rank, 0)  # the same images for every stitch
    with autocast():
        recalibrate(net, (images for images, _ in islice(loader, run.recalibrate_bn)))
    return net


def _open_ledger(session: Session, model: SNNet) -> Ledger:
    """The ledger to go on with, if it was made of the same weights on the same data."""
    recipe = session.recipe
    path = session.folder / LEDGER
    ledger = Ledger(path, model.space, uncompiled(model)(Profiler(model).cost))
    settings = recipe.flat()
    assert recipe.run.resume is not None, "the settings were checked"
    data = Path(recipe.data.data_dir or "").resolve()
    origin = {"weights_sha256": fingerprint(recipe.run.resume), "data_dir": str(data)}
    origin |= {key: settings[key] for key in _SETTINGS}
    origin_path = path.with_suffix(".yaml")
    if ledger.rows:
        _check_origin(path, origin, origin_path)
    session.save_settings("eval_args.yaml")
    origin_path.write_text(yaml.safe_dump(origin, sort_keys=False))
    return ledger


def _check_origin(path: Path, origin: dict[str, Any], origin_path: Path) -> None:
    """Refuse to go on with figures that other weights or settings gave."""
    advice = "choose another --experiment or move the file away"
    if not origin_path.exists():
        raise InputError(f"result file '{path}' has no '{origin_path.name}' beside it that says how it came; {advice}")
    # Ledgers are older than some settings, which then had their defaults.
    before = Recipe().flat() | yaml.safe_load(origin_path.read_text())
    for key, value in origin.items():
        if before.get(key) != value:
            raise InputError(f"result file '{path}' was measured with {key} {before.get(key)}, now {value}; {advice}")

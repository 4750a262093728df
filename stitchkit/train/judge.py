"""`--eval`: every stitch of trained weights into the ledger."""

from __future__ import annotations

import json
import logging

import torch.distributed as dist
import yaml
from tqdm import tqdm

from stitchkit.errors import InputError
from stitchkit.measure.evaluate import Score, evaluate_stitch
from stitchkit.measure.ledger import Ledger
from stitchkit.measure.profile import Profiler
from stitchkit.model.snnet import SNNet
from stitchkit.train.checkpoint import fingerprint, load_weights
from stitchkit.train.data import without_padding
from stitchkit.train.optim import create_precision
from stitchkit.train.run import Session

_logger = logging.getLogger(__name__)

LEDGER = "stitches_res.txt"

# Settings that change the figures of a ledger.
_SETTINGS = (
    "data_dir",
    "dataset",
    "val_split",
    "num_classes",
    "img_size",
    "crop_pct",
    "interpolation",
    "mean",
    "std",
    "amp",
    "model_ema",
)


def judge(session: Session) -> None:
    """Evaluate every stitch that the ledger lacks, or the plain model.

    Raises:
        InputError: If the checkpoint or the ledger belongs to something else; both are left as they are.
    """
    recipe, model, world = session.recipe, session.model, session.world
    if recipe.run.resume:
        load_weights(model, recipe.run.resume, session.config, ema=recipe.optim.model_ema)
    autocast, _ = create_precision(recipe.optim, world.device)

    def score(cfg_id: int | None) -> Score:
        batches = without_padding(session.loaders.validation, world)
        return evaluate_stitch(model, cfg_id, batches, device=world.device, autocast=autocast)

    if not isinstance(model, SNNet):
        figures = {"model": recipe.model.model, **score(None)._asdict()}
        _logger.info("%s", json.dumps(figures))
        return
    ledger = _open_ledger(session, model) if world.is_primary else None
    # The other machines may not see the file, so the primary says what is missing.
    missing = [ledger.missing if ledger else []]
    dist.broadcast_object_list(missing)
    bar = tqdm(missing[0], desc="stitches", unit="stitch", disable=None if world.is_primary else True)
    for cfg_id in bar:
        figures = score(cfg_id)._asdict()
        if ledger is not None:
            ledger.append(cfg_id, figures)
        _logger.info("stitch %d/%d  %s  acc1 %.2f", cfg_id, len(model.space) - 1, model.space[cfg_id], figures["acc1"])
    if ledger is not None:
        _logger.info("%d stitches are in %s; their front: stitchkit pareto %s", len(ledger.rows), *2 * [ledger.path])


def _open_ledger(session: Session, model: SNNet) -> Ledger:
    """The ledger to go on with, if it was made of the same weights on the same data."""
    recipe = session.recipe
    path = session.folder / LEDGER
    ledger = Ledger(path, model.space, Profiler(model).cost)
    settings = recipe.flat()
    weights = recipe.run.resume or recipe.model.initial_checkpoint
    assert weights is not None
    origin = {"weights_sha256": fingerprint(weights), **{key: settings[key] for key in _SETTINGS}}
    origin_path = path.with_suffix(".yaml")
    if ledger.rows and origin_path.exists():
        before = yaml.safe_load(origin_path.read_text())
        for key, value in origin.items():
            if before.get(key) != value:
                raise InputError(
                    f"result file '{path}' was measured with {key} {before.get(key)}, now it is {value}; "
                    "choose another --experiment or move the file away"
                )
    session.save_settings("eval_args.yaml")
    origin_path.write_text(yaml.safe_dump(origin, sort_keys=False))
    return ledger

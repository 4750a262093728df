"""`--eval`: evaluate every stitch of trained weights into the ledger."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import yaml
from timm.utils import distribute_bn
from torch import nn

from stitchkit.data.loaders import without_padding
from stitchkit.data.unreadable import report
from stitchkit.distributed import World, from_primary
from stitchkit.engine.epochs import score
from stitchkit.engine.progress import progress
from stitchkit.errors import InputError, one_line
from stitchkit.files import write_text
from stitchkit.measure.evaluate import Score, Tally
from stitchkit.measure.ledger import Ledger
from stitchkit.measure.partial_sums import PartialSums
from stitchkit.measure.profile import Profiler
from stitchkit.measure.recalibrate import recalibrate
from stitchkit.model.onepass import OnePass
from stitchkit.model.snnet import SNNet
from stitchkit.networks.mode import evaluating
from stitchkit.settings.recipe import Recipe
from stitchkit.train.checkpoint import load_weights
from stitchkit.train.network import uncompiled
from stitchkit.train.session import Session

_logger = logging.getLogger(__name__)

LEDGER = "stitches_res.txt"
_LATENCIES = "latencies"
_MIB = 2**20

# Settings that change the figures of a ledger, so a ledger with other ones is not continued.
_SETTINGS = (
    *("dataset", "val_split", "class_map", "input_key", "target_key", "val_num_samples", "num_classes", "img_size"),
    *("crop_pct", "interpolation", "mean", "std", "amp", "amp_dtype", "channels_last", "model_ema"),
    *("recalibrate_bn", "in_chans", "input_size", "input_img_mode", "gp", "bn_eps", "fast_norm", "model_dtype"),
)

# Settings that change recomputed batch-norm statistics.
_CALIBRATION = ("batch_size", "validation_batch_size", "train_split", "train_num_samples", "seed", "dist_bn")


def evaluate_stitches(session: Session) -> None:
    """Evaluate every stitch that the ledger lacks, or the plain model.

    All stitches are evaluated in one pass over the images; with `--recalibrate-bn`, each has its own pass.

    Raises:
        InputError: If the checkpoint or the ledger belongs to something else; both are left as they are.
    """
    recipe, model = session.recipe, session.model
    digest = load_weights(session, ema=recipe.optim.model_ema)[1] if recipe.run.resume else ""
    if not isinstance(model, SNNet):
        figures = {"model": recipe.model.model, **_score_alone(session, None, "evaluation")._asdict()}
        _logger.info("%s", json.dumps(figures))
        return
    wanted = model.space.select(recipe.run.eval_stitches) if recipe.run.eval_stitches else range(len(model.space))
    origin = _origin(recipe, session.world, digest)
    ledgers: list[Ledger] = []  # one, on the primary rank; other machines may not see the file

    def find_missing() -> list[int]:
        ledgers.append(_open_ledger(session, model, origin))
        return [cfg_id for cfg_id in wanted if cfg_id in ledgers[0].missing]

    missing, last = from_primary(session.world, find_missing), len(model.space) - 1
    scores = _in_one_pass(session, model, missing, origin)
    if recipe.run.recalibrate_bn:  # norm statistics differ from route to route, so no work is shared
        scores = ((cfg_id, _score_alone(session, cfg_id, f"stitch {cfg_id}/{last}")) for cfg_id in missing)
    for cfg_id, found in scores:
        for ledger in ledgers:
            ledger.append(cfg_id, found._asdict())
        _logger.info("stitch %d/%d  %s  acc1 %.2f", cfg_id, last, model.space[cfg_id], found.acc1)
    for ledger in ledgers:
        _add_latencies(recipe.run.latency, model, ledger, origin)
        _logger.info("%d stitches are in %s; their front: stitchkit pareto %s", len(ledger.rows), *2 * [ledger.path])


def _in_one_pass(
    session: Session, model: SNNet, cfg_ids: Sequence[int], origin: Mapping[str, object]
) -> Iterator[tuple[int, Score]]:
    """The score of each stitch, all from one pass over the images.

    Every rank saves its sums after each batch, from which a killed evaluation resumes.
    """
    if not cfg_ids:
        return
    world, run, loader = session.world, session.recipe.run, session.loaders.validation
    one_pass = OnePass(model, cfg_ids, memory=run.eval_memory and run.eval_memory * _MIB)
    tally = Tally(len(cfg_ids), world.device)
    data = session.recipe.data
    batch_size = data.validation_batch_size or data.batch_size
    of = {**origin, "cfg_ids": list(cfg_ids), "world_size": world.size, "batch_size": batch_size}
    partial = PartialSums(session.folder / f"{LEDGER}.part{world.rank}", of)
    done = partial.restore(tally.sums)
    batches = progress(
        without_padding(loader, world), world, f"{len(cfg_ids)} stitches", unit="batch", total=len(loader)
    )
    with evaluating(model), torch.no_grad():
        for number, (images, labels) in enumerate(batches):
            if number < done:  # read, not skipped: random numbers of a loader may depend on earlier images
                continue
            with session.autocast():
                logits = one_pass(images)
            for row, cfg_id in enumerate(cfg_ids):
                tally.add(row, logits[cfg_id], labels)
            partial.save(tally.sums, number + 1)
    report(loader.dataset)
    yield from zip(cfg_ids, tally.scores(), strict=True)
    partial.remove()  # only now, when the ledger has all rows


def _score_alone(session: Session, cfg_id: int | None, what: str) -> Score:
    """The score of one stitch, recalibrated if requested, or of the plain model."""
    autocast, net = session.autocast, session.model
    if session.recipe.run.recalibrate_bn:
        net, cfg_id = _recalibrated(session, cfg_id), None
    return score(net, session.loaders.validation, session.world, what, autocast=autocast, cfg_id=cfg_id)


def _recalibrated(session: Session, cfg_id: int | None) -> nn.Module:
    """A copy of one stitch, or of the plain model, with its own batch-norm statistics."""
    run, loader = session.recipe.run, session.loaders.train
    assert loader is not None, "recalibration opens the training split"
    net = session.model.extract(cfg_id) if isinstance(session.model, SNNet) else copy.deepcopy(session.model)
    with session.autocast():
        recalibrate(net, (images for images, _ in islice(loader, run.recalibrate_bn)))
    if way := session.recipe.distributed.dist_bn:
        distribute_bn(net, session.world.size, way == "reduce")
    return net


def _origin(recipe: Recipe, world: World, weights_sha256: str) -> dict[str, object]:
    """Everything that the figures of an evaluation depend on."""
    settings = recipe.flat()
    data = Path(recipe.data.data_dir or "").resolve()
    weights = {"weights_sha256": weights_sha256, "data_dir": str(data)}
    origin: dict[str, object] = weights | {key: settings[key] for key in _SETTINGS}
    if recipe.run.recalibrate_bn:
        origin |= {key: settings[key] for key in _CALIBRATION} | {"ranks": world.size}
    return origin


def _open_ledger(session: Session, model: SNNet, origin: Mapping[str, object]) -> Ledger:
    """The ledger to continue, if it was measured with the same weights on the same data."""
    path = session.folder / LEDGER
    ledger = Ledger(path, model.space, uncompiled(model)(Profiler(model).cost))
    origin_path = path.with_suffix(".yaml")
    before = _check_origin(path, origin, origin_path) if ledger.rows else {}
    session.save_settings("eval_args.yaml")
    _write_origin(origin_path, origin, before.get(_LATENCIES))
    return ledger


def _write_origin(path: Path, origin: Mapping[str, object], latencies: object) -> None:
    """Write the settings that the figures depend on and, if latencies were measured, how."""
    measured = {} if latencies is None else {_LATENCIES: latencies}
    write_text(path, yaml.safe_dump({**origin, **measured}, sort_keys=False))


def _add_latencies(batch_size: int, model: SNNet, ledger: Ledger, origin: Mapping[str, object]) -> None:
    """Measure the latency of every stitch in the ledger again: results of separate runs are not comparable.

    Only the primary rank does this, after the others have finished.
    """
    if not batch_size or not ledger.rows:
        return
    from stitchkit.measure.latency import add_latencies  # slow to import

    with uncompiled(model):
        said = add_latencies(ledger.rows, model, batch_size=batch_size)
    ledger.rewrite()
    _write_origin(ledger.path.with_suffix(".yaml"), origin, said)
    _logger.info("%s", said)


def _check_origin(path: Path, origin: Mapping[str, object], origin_path: Path) -> dict[str, Any]:
    """The settings that a ledger was measured with.

    Raises:
        InputError: If they are unknown, or differ from the present weights or settings.
    """
    advice = "choose another --experiment or move the file away"
    if not origin_path.exists():
        raise InputError(
            f"result file '{path}' has no '{origin_path.name}' beside it that says how it was measured; {advice}"
        )
    # A ledger may be older than some settings, which then had their defaults.
    try:
        before: dict[str, Any] = Recipe().flat() | yaml.safe_load(origin_path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError, TypeError) as error:
        raise InputError(
            f"'{origin_path}', which says how '{path}' was measured, cannot be read: {one_line(error)}; {advice}"
        ) from error
    for key, value in origin.items():
        if before.get(key) != value:
            raise InputError(f"result file '{path}' was measured with {key} {before.get(key)}, now {value}; {advice}")
    return before

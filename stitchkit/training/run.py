"""A run: open data, build the network, then train it or evaluate its stitches."""

from __future__ import annotations

import logging
import warnings
from dataclasses import replace

from stitchkit.data.loader_processes import more_than_cores
from stitchkit.engine.recovery import TRAIN_LOCK, check_unused, entered, find_resume, joined, launched
from stitchkit.settings.recipe import Recipe
from stitchkit.settings.stitch_config import StitchConfig
from stitchkit.training.checkpoint import Checkpoints
from stitchkit.training.data import check_labels
from stitchkit.training.evaluation import evaluate_stitches
from stitchkit.training.network import check_device, check_names
from stitchkit.training.plan import plan_network, show_network, show_plan
from stitchkit.training.session import open_session
from stitchkit.training.train import train

_logger = logging.getLogger(__name__)


def run(recipe: Recipe, config: StitchConfig | None) -> None:
    """Train, or evaluate with `--eval`, an SN-Net, or without a configuration a plain model; every rank calls this.

    With `--dry-run`, only say what the run would do. Nothing is overwritten if anything cannot be used.
    """
    plan = plan_network(recipe) if recipe.model.anchors else None
    config = config if plan is None else plan.config.with_updates(recipe)
    check_names(recipe, config)
    check_labels(recipe)
    run = recipe.run
    # An evaluation and a training write different files, so they may run at the same time.
    lock = recipe.folder / (".eval.lock" if run.eval else TRAIN_LOCK)
    entry = joined(run.device) if run.dry_run else entered(lock, run.device, flag="--output")
    with more_than_cores(), warnings.catch_warnings(), entry as world:
        # Of DistributedDataParallel, about 1x1 convolutions behind a permutation, as ConvNeXt's: a copy more, no error.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        check_device(recipe, world)
        files = Checkpoints(recipe.folder, keep=run.checkpoint_hist)
        checkpoint, restarted = find_resume(run.resume, files, world, only="evaluate" if run.eval else "")
        recipe = replace(recipe, run=replace(run, resume=checkpoint))
        if restarted:  # these flags were meant for the first start of the run
            first = replace(recipe.schedule, start_epoch=None)
            recipe = replace(recipe, run=replace(recipe.run, no_resume_opt=False), schedule=first)
        if not run.eval:
            check_unused(files, None if recipe.run.no_resume_opt else recipe.run.resume, flag="--experiment")
        if run.dry_run:  # published weights would be downloaded
            recipe = replace(recipe, model=replace(recipe.model, pretrained=False))
        for line in [] if plan is None else plan.lines:
            _logger.info("%s", line)
        session = open_session(recipe, config, world)
        if plan is not None and world.is_primary and not run.dry_run:
            show_network(session)
        if run.dry_run:
            show_plan(session)
        elif run.eval:
            evaluate_stitches(session)
        else:
            with launched(recipe.folder, world):
                train(session, files)

"""A run: open data, build the network, then train it or evaluate its stitches."""

from __future__ import annotations

from dataclasses import replace

from stitchkit.distributed import World
from stitchkit.engine.recovery import TRAIN_LOCK, check_unused, entered, find_resume, launched
from stitchkit.settings.recipe import Recipe
from stitchkit.settings.stitch_config import StitchConfig
from stitchkit.train.checkpoint import Checkpoints
from stitchkit.train.evaluation import evaluate_stitches
from stitchkit.train.network import check_device
from stitchkit.train.session import open_session
from stitchkit.train.training import train


def run(recipe: Recipe, config: StitchConfig | None) -> None:
    """Train, or evaluate with `--eval`, an SN-Net, or without a configuration a plain model; every rank calls this.

    Nothing is overwritten if anything cannot be used.
    """
    # An evaluation and a training write different files, so they may run at the same time.
    lock = recipe.folder / (".eval.lock" if recipe.run.eval else TRAIN_LOCK)
    with entered(lock, recipe.run.device, flag="--output") as world:
        check_device(recipe, world)
        files = Checkpoints(recipe.folder, keep=recipe.run.checkpoint_hist)
        recipe = _find_resume(recipe, files, world)
        if recipe.run.eval:
            evaluate_stitches(open_session(recipe, config, world))
            return
        check_unused(files, None if recipe.run.no_resume_opt else recipe.run.resume, flag="--experiment")
        session = open_session(recipe, config, world)
        with launched(recipe.folder, world):
            train(session, files)


def _find_resume(recipe: Recipe, files: Checkpoints, world: World) -> Recipe:
    """The recipe with a file, or None if there is none yet, in place of `--resume auto`."""
    run = recipe.run
    found, restarted = find_resume(run.resume, files, world, only="evaluate" if run.eval else "")
    if restarted:  # these flags were meant for the first start of the run
        run = replace(run, no_resume_opt=False)
        recipe = replace(recipe, schedule=replace(recipe.schedule, start_epoch=None))
    return replace(recipe, run=replace(run, resume=found))

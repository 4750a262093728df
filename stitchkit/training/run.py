"""A run: open data, build the network, then train it or evaluate its stitches."""

from __future__ import annotations

from dataclasses import replace

from stitchkit.data.sources import check_folder
from stitchkit.distributed import World
from stitchkit.engine.recovery import TRAIN_LOCK, check_unused, entered, find_resume, joined, launched
from stitchkit.settings.recipe import Recipe
from stitchkit.settings.stitch_config import StitchConfig
from stitchkit.training.checkpoint import Checkpoints
from stitchkit.training.data import source_of
from stitchkit.training.evaluation import evaluate_stitches
from stitchkit.training.network import check_device, check_names
from stitchkit.training.plan import show_plan
from stitchkit.training.session import open_session
from stitchkit.training.train import train


def run(recipe: Recipe, config: StitchConfig | None) -> None:
    """Train, or evaluate with `--eval`, an SN-Net, or without a configuration a plain model; every rank calls this.

    Nothing is overwritten if anything cannot be used.
    """
    check_names(recipe, config)
    check_folder(source_of(recipe))  # a mistake in its name is reported before a busy folder
    if recipe.run.dry_run:
        _plan(recipe, config)
        return
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


def _plan(recipe: Recipe, config: StitchConfig | None) -> None:
    """Say what a run would do; neither data nor published weights are downloaded for it."""
    offline = replace(
        recipe,
        model=replace(recipe.model, pretrained=False),
        data=replace(recipe.data, dataset_download=False),
    )
    with joined(recipe.run.device) as world:
        check_device(recipe, world)
        if not recipe.run.eval and recipe.run.resume is None:
            check_unused(Checkpoints(recipe.folder, keep=recipe.run.checkpoint_hist), None, flag="--experiment")
        show_plan(open_session(offline, config, world))


def _find_resume(recipe: Recipe, files: Checkpoints, world: World) -> Recipe:
    """The recipe with a file, or None if there is none yet, in place of `--resume auto`."""
    run = recipe.run
    found, restarted = find_resume(run.resume, files, world, only="evaluate" if run.eval else "")
    if restarted:  # these flags were meant for the first start of the run
        run = replace(run, no_resume_opt=False)
        recipe = replace(recipe, schedule=replace(recipe.schedule, start_epoch=None))
    return replace(recipe, run=replace(run, resume=found))

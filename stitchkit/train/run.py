"""A run: open data, build the network, then train it or evaluate its stitches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from timm.utils import random_seed

from stitchkit.data.loaders import create_loaders, open_datasets
from stitchkit.distributed import World
from stitchkit.engine.recovery import TRAIN_LOCK, check_unused, entered, find_resume, launched
from stitchkit.networks.timm_model import as_timm
from stitchkit.settings.combinations import run_folder
from stitchkit.settings.recipe import Recipe
from stitchkit.settings.stitch_config import StitchConfig
from stitchkit.train.checkpoint import Checkpoints
from stitchkit.train.evaluation import evaluate_stitches
from stitchkit.train.network import check_device, create_network, input_size, place_network
from stitchkit.train.session import Session
from stitchkit.train.training import train


def run(recipe: Recipe, config: StitchConfig | None) -> None:
    """Train, or evaluate with `--eval`; every rank calls this.

    Args:
        recipe: All settings.
        config: The stitch configuration; None trains or evaluates a plain model.

    Raises:
        InputError: If data, configuration, checkpoint or run folder cannot be used; nothing is overwritten then.
    """
    folder = run_folder(recipe)
    # An evaluation and a training write different files, so they may run at the same time.
    lock = folder / (".eval.lock" if recipe.run.eval else TRAIN_LOCK)
    with entered(lock, recipe.run.device, flag="--output") as world:
        check_device(recipe, world)
        files = Checkpoints(folder, keep=1)
        recipe = _find_resume(recipe, files, world)
        if recipe.run.eval:
            evaluate_stitches(_open_session(recipe, config, world, folder))
            return
        check_unused(files, None if recipe.run.no_resume_opt else recipe.run.resume, flag="--experiment")
        session = _open_session(recipe, config, world, folder)
        with launched(folder, world):
            train(session)


def _find_resume(recipe: Recipe, files: Checkpoints, world: World) -> Recipe:
    """The recipe with a file, or None if there is none yet, in place of `--resume auto`."""
    run = recipe.run
    found, restarted = find_resume(run.resume, files, world, only="evaluate" if run.eval else "")
    if restarted:  # these flags were meant for the first start of the run
        run = replace(run, no_resume_opt=False)
        recipe = replace(recipe, schedule=replace(recipe.schedule, start_epoch=None))
    return replace(recipe, run=replace(run, resume=found))


def _open_session(recipe: Recipe, config: StitchConfig | None, world: World, folder: Path) -> Session:
    """Open the data and build the network."""
    datasets = open_datasets(recipe)
    random_seed(recipe.run.seed, 0)  # the same weights on all ranks
    model = create_network(recipe, config, datasets.classes)
    size = input_size(model, recipe)
    loaders = create_loaders(
        datasets,
        recipe,
        world,
        input_size=size,
        model_config=as_timm(model).pretrained_cfg,
        num_classes=as_timm(model).num_classes,
    )
    place_network(model, recipe, world)
    return Session(recipe, config, model, loaders, size, datasets.classes, world, folder)

"""A run: open data, build the network, then train it or evaluate its stitches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch.distributed as dist
from timm.utils import random_seed
from tqdm.contrib.logging import logging_redirect_tqdm

from stitchkit.data.loaders import create_loaders, open_datasets
from stitchkit.data.unreadable import explained
from stitchkit.distributed import World, init_world
from stitchkit.engine.lock import alone, made
from stitchkit.engine.recovery import find_resume, is_restart, launched
from stitchkit.errors import InputError
from stitchkit.settings.combinations import run_folder
from stitchkit.settings.recipe import Recipe
from stitchkit.settings.stitch_config import StitchConfig
from stitchkit.train.checkpoint import Checkpoints
from stitchkit.train.evaluation import evaluate_stitches
from stitchkit.train.network import check_device, create_network, input_size, place_network
from stitchkit.train.session import Session
from stitchkit.train.training import train


def run(recipe: Recipe, config: StitchConfig | None) -> None:
    """Train, or with `--eval` evaluate, as the recipe says; every rank calls this.

    Args:
        recipe: All settings.
        config: The stitch configuration; None trains or evaluates a plain model.

    Raises:
        InputError: If data, configuration, checkpoint or run folder cannot be used as asked; nothing was overwritten.
    """
    folder = run_folder(recipe)
    world = init_world(recipe.run.device)
    try:
        check_device(recipe, world)
        # An evaluation and a training write different files.
        lock = folder / (".eval.lock" if recipe.run.eval else ".train.lock")
        with made(folder, "--output"), explained(), logging_redirect_tqdm(), alone(lock, world):
            recipe = _find_resume(recipe, Checkpoints(folder, keep=1), world)
            _check_no_other_run(recipe, folder)
            session = _open_session(recipe, config, world, folder)
            if recipe.run.eval:
                evaluate_stitches(session)
                return
            with launched(folder, world):
                train(session)
    finally:
        dist.destroy_process_group()


def _find_resume(recipe: Recipe, files: Checkpoints, world: World) -> Recipe:
    """The recipe with a file in place of `--resume auto`, or nothing where there is none yet."""
    run, restarted = recipe.run, not recipe.run.eval and is_restart(files, world)
    found = find_resume(run.resume, files, world, restarted=restarted)
    if run.eval and run.resume is not None and found is None:
        raise InputError(f"'{files.folder}' holds no checkpoint to evaluate; give one as --resume CHECKPOINT")
    if restarted:  # where the run began, and with what, was said for its first start
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
        model_config=model.pretrained_cfg,  # type: ignore[arg-type]
        num_classes=model.num_classes,  # type: ignore[arg-type]
    )
    place_network(model, recipe, world)
    return Session(recipe, config, model, loaders, size, datasets.classes, world, folder)


def _check_no_other_run(recipe: Recipe, folder: Path) -> None:
    """See that no other run in the folder would be overwritten."""
    last = Checkpoints(folder, keep=1).last
    goes_on = (
        recipe.run.resume is not None
        and not recipe.run.no_resume_opt
        and Path(recipe.run.resume).resolve().parent == folder.resolve()
    )
    if not recipe.run.eval and last.exists() and not goes_on:
        raise InputError(
            f"'{folder}' already holds a run; resume it with --resume auto, or choose another --experiment"
        )

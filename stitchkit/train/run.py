"""A run: open data, build the network, then train it or evaluate its stitches."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import torch.distributed as dist
from timm.utils import random_seed
from tqdm.contrib.logging import logging_redirect_tqdm

from stitchkit.data.loaders import create_loaders
from stitchkit.data.splits import open_datasets
from stitchkit.data.unreadable import explained
from stitchkit.distributed import World, from_primary, init_world
from stitchkit.errors import InputError
from stitchkit.settings.combinations import run_folder
from stitchkit.settings.recipe import Recipe
from stitchkit.settings.stitch_config import StitchConfig
from stitchkit.train.checkpoint import Checkpoints
from stitchkit.train.evaluation import evaluate_stitches
from stitchkit.train.lock import locked
from stitchkit.train.network import check_device, create_network, input_size, place_network
from stitchkit.train.recovery import find_resume, launched
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
        _make_folder(folder)
        with explained(), logging_redirect_tqdm(), _alone(recipe, folder, world):
            recipe = find_resume(recipe, folder, world)
            _check_no_other_run(recipe, folder)
            session = _open_session(recipe, config, world, folder)
            if recipe.run.eval:
                evaluate_stitches(session)
                return
            with launched(folder, world):
                train(session)
    finally:
        dist.destroy_process_group()
        with suppress(OSError):
            folder.rmdir()  # a run that was refused leaves no empty folder


@contextmanager
def _alone(recipe: Recipe, folder: Path, world: World) -> Iterator[None]:
    """Keep other runs out of the folder; an evaluation and a training write different files."""
    with ExitStack() as held:
        lock = locked(folder / (".eval.lock" if recipe.run.eval else ".train.lock"))
        from_primary(world, lambda: held.enter_context(lock))
        yield


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
            f"'{folder}' already holds a run; go on with it by --resume auto, or choose another --experiment"
        )


def _make_folder(folder: Path) -> None:
    """See that the run's folder can be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"run folder '{folder}' cannot be made: {error.strerror}; choose another --output") from error
    if not os.access(folder, os.W_OK):
        raise InputError(f"run folder '{folder}' cannot be written; choose another --output")

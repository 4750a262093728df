"""A run: open data, build the network, then train it or evaluate its stitches."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from timm.utils import random_seed
from torch import nn
from tqdm.contrib.logging import logging_redirect_tqdm

from stitchkit.config import StitchConfig
from stitchkit.distributed import World, init_world
from stitchkit.errors import InputError
from stitchkit.model.anchor import has_view, view
from stitchkit.model.create import create_model, create_snnet
from stitchkit.model.snnet import SNNet
from stitchkit.model.weights import load_checkpoint
from stitchkit.train.checkpoint import Checkpoints
from stitchkit.train.data import create_loaders, open_datasets
from stitchkit.train.evaluation import evaluate_stitches
from stitchkit.train.recipe import Recipe
from stitchkit.train.session import Session
from stitchkit.train.training import train

_logger = logging.getLogger(__name__)


def run(recipe: Recipe, config: StitchConfig | None) -> None:
    """Train, or with `--eval` evaluate, as the recipe says; every rank calls this.

    Args:
        recipe: All settings.
        config: The stitch configuration; None trains or evaluates a plain model.

    Raises:
        InputError: If data, configuration, checkpoint or run folder cannot be used as asked; nothing was overwritten.
    """
    world = init_world(recipe.run.device)
    try:
        with logging_redirect_tqdm():
            session = _open_session(recipe, config, world)
            (evaluate_stitches if recipe.run.eval else train)(session)
    finally:
        dist.destroy_process_group()


def _open_session(recipe: Recipe, config: StitchConfig | None, world: World) -> Session:
    """Open the data and build the network, the quick checks first."""
    folder = run_folder(recipe)
    _check_folder(recipe, folder)
    datasets = open_datasets(recipe)
    random_seed(recipe.run.seed, 0)  # the same weights on all ranks
    model = _create_network(recipe, config, len(datasets.classes) or None)
    loaders = create_loaders(
        datasets,
        recipe,
        world,
        input_size=_input_size(model, recipe),
        model_config=model.pretrained_cfg,  # type: ignore[arg-type]
        num_classes=model.num_classes,  # type: ignore[arg-type]
    )
    model.to(world.device)
    if recipe.model.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Session(recipe, config, model, loaders, datasets.classes, world, folder)


def _check_folder(recipe: Recipe, folder: Path) -> None:
    """See that the run's folder can be written, and that no other run in it would be overwritten."""
    last = Checkpoints(folder, keep=1).last
    goes_on = (
        recipe.run.resume is not None
        and not recipe.run.no_resume_opt
        and Path(recipe.run.resume).resolve().parent == folder.resolve()
    )
    if not recipe.run.eval and last.exists() and not goes_on:
        raise InputError(
            f"'{folder}' already holds a run; go on with it by --resume {last}, or choose another --experiment"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"run folder '{folder}' cannot be made: {error.strerror}; choose another --output") from error
    if not os.access(folder, os.W_OK):
        raise InputError(f"run folder '{folder}' cannot be written; choose another --output")


def run_folder(recipe: Recipe) -> Path:
    """The folder of a run: `--output/--experiment`, named by the configuration or model where none is given."""
    name = recipe.run.experiment or Path(recipe.model.stitch_config or recipe.model.model or "").stem
    return Path(recipe.run.output) / name


def _create_network(recipe: Recipe, config: StitchConfig | None, found_classes: int | None) -> nn.Module:
    """The SN-Net or the plain model, with the weights it starts from.

    Args:
        recipe: All settings.
        config: The stitch configuration, if there is one.
        found_classes: Number of classes in the data, where known.
    """
    settings = recipe.model
    starts_elsewhere = recipe.run.resume is not None or settings.initial_checkpoint is not None
    options: dict[str, Any] = {
        "pretrained": settings.pretrained and not starts_elsewhere,
        "num_classes": settings.num_classes or found_classes,
        "img_size": settings.img_size,
        "drop_rate": settings.drop,
        "drop_path_rate": settings.drop_path,
    }
    model: nn.Module
    if config is not None:
        model = create_snnet(config, **options)
        _warn_of_normalisation(model, recipe)
    else:
        assert settings.model is not None
        model = create_model(settings.model, **(options | (settings.model_kwargs or {})))
    if settings.initial_checkpoint and not recipe.run.resume:
        load_checkpoint(model, settings.initial_checkpoint)
    if settings.grad_checkpointing:
        model.set_grad_checkpointing(True)  # type: ignore[operator]
    if found_classes is not None and found_classes > model.num_classes:  # type: ignore[operator]
        raise InputError(
            f"the dataset has {found_classes} classes but the network {model.num_classes} outputs; "
            f"leave --num-classes out or give at least {found_classes}"
        )
    return model


def _warn_of_normalisation(model: SNNet, recipe: Recipe) -> None:
    """Images are prepared in one way for all anchors; say so where they were trained in several."""
    if recipe.data.mean and recipe.data.std:
        return
    configs = {label: anchor.pretrained_cfg for label, anchor in model.views.items()}
    ways = {label: (config["mean"], config["std"]) for label, config in configs.items()}
    if len(set(ways.values())) > 1:
        listed = "; ".join(f"{label} {mean} {std}" for label, (mean, std) in ways.items())
        _logger.warning(
            "anchors expect images with different mean and std (%s); all get those of the last one, unless --mean and "
            "--std say otherwise",
            listed,
        )


def _input_size(model: nn.Module, recipe: Recipe) -> tuple[int, ...]:
    if isinstance(model, SNNet):
        return model.input_size
    if has_view(model):
        return view(model, label="model").input_size
    channels, *sides = model.pretrained_cfg["input_size"]  # type: ignore[index]
    return (channels, recipe.model.img_size, recipe.model.img_size) if recipe.model.img_size else (channels, *sides)

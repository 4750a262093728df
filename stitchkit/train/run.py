"""A run: open data, build the network, then train it or evaluate its stitches."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import yaml
from timm.utils import random_seed
from torch import nn

from stitchkit.config import StitchConfig
from stitchkit.distributed import World, init_world
from stitchkit.errors import InputError
from stitchkit.model.anchor import has_view, view
from stitchkit.model.create import create_model, create_snnet
from stitchkit.model.snnet import SNNet
from stitchkit.model.weights import load_checkpoint
from stitchkit.train.checkpoint import Checkpoints
from stitchkit.train.data import Loaders, create_loaders, open_datasets
from stitchkit.train.recipe import Recipe


@dataclass(frozen=True)
class Session:
    """What training and evaluation stand on.

    Args:
        recipe: All settings.
        config: The stitch configuration; None for a plain model.
        model: The SN-Net or plain model, on the device of this rank.
        loaders: The data.
        world: This process among all.
        folder: Where the run's files go.
    """

    recipe: Recipe
    config: StitchConfig | None
    model: nn.Module
    loaders: Loaders
    world: World
    folder: Path

    def save_settings(self, name: str) -> None:
        """Save the effective settings in the run's folder, as a file that `-c` reads."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_text(yaml.safe_dump(self.recipe.flat(), sort_keys=False))


def run(recipe: Recipe, config: StitchConfig | None) -> None:
    """Train, or with `--eval` evaluate, as the recipe says; every rank calls this.

    Args:
        recipe: All settings.
        config: The stitch configuration; None trains or evaluates a plain model.

    Raises:
        InputError: If data, configuration, checkpoint or run folder cannot be used as asked; nothing was overwritten.
    """
    from stitchkit.train.fit import fit
    from stitchkit.train.judge import judge

    folder = run_folder(recipe)
    last = Checkpoints(folder, keep=recipe.run.checkpoint_hist).last
    if not recipe.run.eval and not recipe.run.resume and last.exists():
        raise InputError(f"'{folder}' already holds a run; go on with it by --resume {last}, or choose --experiment")
    datasets = open_datasets(recipe)
    world = init_world(recipe.run.device)
    try:
        random_seed(recipe.run.seed, 0)  # the same weights on all ranks
        model = _create_network(recipe, config, datasets.num_classes)
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
        session = Session(recipe, config, model, loaders, world, folder)
        (judge if recipe.run.eval else fit)(session)
    finally:
        dist.destroy_process_group()


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


def _input_size(model: nn.Module, recipe: Recipe) -> tuple[int, ...]:
    if isinstance(model, SNNet):
        return model.input_size
    if has_view(model):
        return view(model, label="model").input_size
    channels, *sides = model.pretrained_cfg["input_size"]  # type: ignore[index]
    return (channels, recipe.model.img_size, recipe.model.img_size) if recipe.model.img_size else (channels, *sides)

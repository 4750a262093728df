"""A run: from a recipe to trained weights, or from weights to the ledger of all stitches."""

from __future__ import annotations

import json
import logging
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch.distributed as dist
import yaml
from timm.utils import random_seed, unwrap_model, update_summary
from torch import nn
from tqdm import tqdm

from stitchkit.config import StitchConfig
from stitchkit.distributed import World, init_world
from stitchkit.errors import InputError
from stitchkit.measure.evaluate import Score, evaluate_stitch
from stitchkit.measure.ledger import Ledger
from stitchkit.measure.profile import Profiler
from stitchkit.model.anchor import has_view, view
from stitchkit.model.create import create_model, create_snnet
from stitchkit.model.snnet import SNNet
from stitchkit.model.solve import fit_stitching_layers
from stitchkit.model.weights import load_checkpoint
from stitchkit.train.checkpoint import Checkpoints, fingerprint, load_weights, restore, training_state
from stitchkit.train.data import Loaders, create_loaders, open_datasets, some_images, without_padding
from stitchkit.train.loop import Trainer, seed_epoch
from stitchkit.train.optim import create_optimizer, create_precision, create_schedule, learning_rate
from stitchkit.train.recipe import Recipe
from stitchkit.train.sampler import Sampler
from stitchkit.train.task import create_task

_logger = logging.getLogger(__name__)

LEDGER = "stitches_res.txt"


def run_folder(recipe: Recipe) -> Path:
    """The folder of a run: `--output/--experiment`, named by the configuration or model where none is given."""
    name = recipe.run.experiment or Path(recipe.model.stitch_config or recipe.model.model or "").stem
    return Path(recipe.run.output) / name


def run(recipe: Recipe, config: StitchConfig | None) -> None:
    """Train, or with `--eval` evaluate, as the recipe says; every rank calls this.

    Args:
        recipe: All settings.
        config: The stitch configuration; None trains or evaluates a plain model.

    Raises:
        InputError: If data, configuration, checkpoint or run folder cannot be used as asked; nothing was overwritten.
    """
    folder = run_folder(recipe)
    checkpoints = Checkpoints(folder, keep=recipe.run.checkpoint_hist)
    if not recipe.run.eval and not recipe.run.resume and checkpoints.last.exists():
        raise InputError(
            f"'{folder}' already holds a run; go on with it by --resume {checkpoints.last}, "
            "or choose another --experiment"
        )
    datasets = open_datasets(recipe)
    world = init_world(recipe.run.device)
    try:
        random_seed(recipe.run.seed, 0)  # the same weights on all ranks
        model = _create_network(recipe, config, datasets.num_classes)
        _check_classes(model, datasets.num_classes)
        loaders = create_loaders(
            datasets, recipe, world, input_size=_input_size(model, recipe), model_config=model.pretrained_cfg,  # type: ignore[arg-type]
            num_classes=model.num_classes,  # type: ignore[arg-type]
        )  # fmt: skip
        model.to(world.device)
        if recipe.model.channels_last:
            model.to(memory_format=_channels_last())  # type: ignore[call-overload]
        if recipe.run.eval:
            _evaluate(model, recipe, config, loaders, world)
        else:
            _train(model, recipe, config, loaders, world, checkpoints)
    finally:
        dist.destroy_process_group()


def _channels_last() -> Any:
    import torch

    return torch.channels_last


def _create_network(recipe: Recipe, config: StitchConfig | None, num_classes: int | None) -> nn.Module:
    """The SN-Net or the plain model, with the weights it starts from."""
    settings = recipe.model
    starts_elsewhere = recipe.run.resume is not None or settings.initial_checkpoint is not None
    options: dict[str, Any] = {
        "pretrained": settings.pretrained and not starts_elsewhere,
        "num_classes": settings.num_classes or num_classes,
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
    return model


def _check_classes(model: nn.Module, found: int | None) -> None:
    if found is not None and found > model.num_classes:  # type: ignore[operator]
        raise InputError(
            f"the dataset has {found} classes but the network {model.num_classes} outputs; leave --num-classes out "
            f"or give at least {found}"
        )


def _input_size(model: nn.Module, recipe: Recipe) -> tuple[int, ...]:
    if isinstance(model, SNNet):
        return model.input_size
    if has_view(model):
        return view(model, label="model").input_size
    channels, *sides = model.pretrained_cfg["input_size"]  # type: ignore[index]
    return (channels, recipe.model.img_size, recipe.model.img_size) if recipe.model.img_size else (channels, *sides)


def _evaluate(
    model: nn.Module, recipe: Recipe, config: StitchConfig | None, loaders: Loaders, world: World
) -> None:
    """Evaluate every stitch that the ledger lacks, or the plain model."""
    if recipe.run.resume:
        load_weights(model, recipe.run.resume, config, ema=recipe.optim.model_ema)
    autocast, _ = create_precision(recipe.optim, world.device)
    folder = run_folder(recipe)
    if not isinstance(model, SNNet):
        score = evaluate_stitch(model, None, without_padding(loaders.validation, world), device=world.device, autocast=autocast)
        if world.is_primary:
            _logger.info("%s", json.dumps({"model": recipe.model.model, **score._asdict()}))
        return
    ledger, missing = None, [list(range(len(model.space)))]
    if world.is_primary:
        ledger = _open_ledger(model, recipe, folder)
        missing = [ledger.missing]
    dist.broadcast_object_list(missing)
    bar = tqdm(missing[0], desc="stitches", unit="stitch", disable=None if world.is_primary else True)
    for cfg_id in bar:
        score = evaluate_stitch(model, cfg_id, without_padding(loaders.validation, world), device=world.device, autocast=autocast)
        if ledger is not None:
            ledger.append(cfg_id, score._asdict())
            _logger.info("stitch %d/%d  %s  acc1 %.2f", cfg_id, len(model.space) - 1, model.space[cfg_id], score.acc1)
    if ledger is not None:
        _logger.info("%d stitches are in %s; see their front: stitchkit pareto %s", len(ledger.rows), ledger.path, ledger.path)


def _open_ledger(model: SNNet, recipe: Recipe, folder: Path) -> Ledger:
    """The ledger to go on with, if it was made of the same weights and the same data settings."""
    assert recipe.run.resume is not None
    path = folder / LEDGER
    ledger = Ledger(path, model.space, Profiler(model).cost)
    settings = {key: recipe.flat()[key] for key in _LEDGER_SETTINGS}
    origin = {"checkpoint_sha256": fingerprint(recipe.run.resume), **settings}
    origin_path = path.with_suffix(".yaml")
    if ledger.rows and origin_path.exists():
        before = yaml.safe_load(origin_path.read_text())
        if wrong := [key for key, value in origin.items() if before.get(key) != value]:
            raise InputError(
                f"result file '{path}' was measured with another {wrong[0]} ({before.get(wrong[0])}, now "
                f"{origin[wrong[0]]}); choose another --experiment or move the file away"
            )
    folder.mkdir(parents=True, exist_ok=True)
    _save_settings(recipe, folder / "eval_args.yaml")
    origin_path.write_text(yaml.safe_dump(origin, sort_keys=False))
    return ledger


# Settings that change the figures of a ledger.
_LEDGER_SETTINGS = ("data_dir", "dataset", "val_split", "img_size", "crop_pct", "interpolation", "mean", "std", "model_ema", "amp")


def _save_settings(recipe: Recipe, path: Path) -> None:
    """Save the effective settings as a file that `-c` reads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(recipe.flat(), sort_keys=False))


def _train(
    model: nn.Module, recipe: Recipe, config: StitchConfig | None, loaders: Loaders, world: World,
    checkpoints: Checkpoints,
) -> None:  # fmt: skip
    """Train from the start or from `--resume` to the last epoch."""
    content = load_weights(model, recipe.run.resume, config) if recipe.run.resume else None
    _prepare_stitching(model, recipe, loaders, world, fresh=content is None and not recipe.model.initial_checkpoint)
    total_batch = recipe.data.batch_size * world.size * recipe.optim.grad_accum_steps
    rate = learning_rate(recipe.optim, total_batch)
    optimizer = create_optimizer(model, recipe.optim, lr=rate)
    autocast, scaler = create_precision(recipe.optim, world.device)
    task = create_task(model, recipe, world.device)
    if recipe.optim.model_ema:
        task.setup_ema(
            decay=recipe.optim.model_ema_decay, use_warmup=recipe.optim.model_ema_warmup,
            device="cpu" if recipe.optim.model_ema_force_cpu else None,
        )  # fmt: skip
    sampler = None
    if isinstance(model, SNNet):
        sampler = Sampler(len(model.space), recipe.run.seed, shared=recipe.stitch.sampling == "shared")
    updates = len(loaders.train) // recipe.optim.grad_accum_steps
    schedule, num_epochs = create_schedule(recipe, optimizer, updates_per_epoch=updates)
    start = 0
    if content is not None and not recipe.run.no_resume_opt:
        start = restore(content, str(recipe.run.resume), task, optimizer, scaler)
        checkpoints.history = dict(content["history"])
    if world.size > 1:
        # A step uses the parameters of its route only, and other ranks may draw other routes.
        task.prepare_distributed(
            device_ids=[world.device.index] if world.device.type == "cuda" else None,
            find_unused_parameters=sampler is not None,
        )
    trainer = Trainer(task, loaders.train, optimizer, schedule, autocast, scaler, sampler, recipe, world)
    if world.is_primary:
        _save_settings(recipe, checkpoints.folder / "args.yaml")
        _logger.info("training %d epochs of %d steps, learning rate %.3g, into %s", num_epochs, updates, rate, checkpoints.folder)
    trainer.start_at(start)
    for epoch in range(start, num_epochs):
        loss = trainer.train_epoch(epoch, num_epochs)
        trainer.start_at(epoch + 1)
        is_last = epoch + 1 == num_epochs
        scores = _validate(trainer, loaders, num_epochs, epoch) if is_last or (epoch + 1) % recipe.run.val_interval == 0 else {}
        if world.is_primary:
            metric = sum(score.acc1 for score in scores.values()) / len(scores) if scores else float("-inf")
            checkpoints.save(training_state(task, optimizer, scaler, config), epoch=epoch, metric=metric)
            _write_summary(checkpoints.folder, epoch, loss, scores, optimizer.param_groups[0]["lr"])
    if world.is_primary:
        _say_next(recipe, config, checkpoints, start == num_epochs)


def _prepare_stitching(model: nn.Module, recipe: Recipe, loaders: Loaders, world: World, *, fresh: bool) -> None:
    """Fit the stitching layers of a fresh SN-Net, and freeze what is not to be trained."""
    if not isinstance(model, SNNet):
        return
    if fresh and recipe.stitch.ls_init:
        seed_epoch(recipe.run.seed, world.rank, 0)
        share = -(-recipe.stitch.stitch_init_bs // world.size)
        residuals = fit_stitching_layers(model, some_images(loaders.train, share))
        mean = sum(residuals.values()) / len(residuals)
        if world.is_primary:
            _logger.info("fitted %d joints in closed form; %.1f %% of the energy is left over on average", len(residuals), 100 * mean)
    if not recipe.stitch.fulltune:
        for name, parameter in model.anchors.named_parameters():
            parameter.requires_grad_(name.endswith("cls_token"))


def _validate(trainer: Trainer, loaders: Loaders, num_epochs: int, epoch: int) -> dict[str, Score]:
    """Scores of the anchors inside the SN-Net, or of the plain model, and of their moving averages."""
    world = trainer.world
    scores = {}
    for suffix, ema in (("", False), ("_ema", True)):
        if ema and not trainer.task.has_ema():
            continue
        module = trainer.task.get_trainable_module(ema=ema)
        model = module.module if ema else unwrap_model(module)  # type: ignore[union-attr]
        anchors = dict(enumerate(model.views)) if isinstance(model, SNNet) else {None: "model"}
        for cfg_id, label in anchors.items():
            batches = without_padding(loaders.validation, world)
            scores[label + suffix] = evaluate_stitch(
                model, cfg_id, batches, device=world.device, autocast=trainer.autocast
            )
    if world.is_primary:
        listed = "  ".join(f"{label} {score.acc1:.2f}" for label, score in scores.items())
        _logger.info("epoch %d/%d  acc1  %s", epoch + 1, num_epochs, listed)
    return scores


def _write_summary(folder: Path, epoch: int, loss: float, scores: dict[str, Score], rate: float) -> None:
    """Append the epoch to `summary.csv`, as timm does."""
    path = folder / "summary.csv"
    figures = OrderedDict((f"{label}_acc1", score.acc1) for label, score in scores.items())
    update_summary(epoch, OrderedDict(loss=loss), figures, str(path), lr=rate, write_header=not path.exists())


def _say_next(recipe: Recipe, config: StitchConfig | None, checkpoints: Checkpoints, nothing_left: bool) -> None:
    done = "nothing left to train; the weights are" if nothing_left else "done; the weights are"
    _logger.info("%s %s", done, checkpoints.last)
    if config is not None:
        _logger.info(
            "next, measure every stitch: stitchkit train %s --stitch_config %s --eval --resume %s",
            recipe.data.data_dir, config.path, checkpoints.last,
        )  # fmt: skip

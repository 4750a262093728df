"""Training from a recipe: prepare, then train, validate and save epoch by epoch."""

from __future__ import annotations

import logging
from collections import OrderedDict

from timm.utils import unwrap_model, update_summary

from stitchkit.measure.evaluate import Score, evaluate_stitch
from stitchkit.model.snnet import SNNet
from stitchkit.model.solve import fit_stitching_layers
from stitchkit.train.checkpoint import Checkpoints, load_weights, restore, training_state
from stitchkit.train.data import Loader, some_images, without_padding
from stitchkit.train.loop import Trainer, seed_epoch
from stitchkit.train.optim import create_optimizer, create_precision, create_schedule, learning_rate
from stitchkit.train.run import Session
from stitchkit.train.sampler import Sampler
from stitchkit.train.task import create_task

_logger = logging.getLogger(__name__)


def fit(session: Session) -> None:
    """Train from the start, or from `--resume`, to the last epoch.

    Raises:
        InputError: If the checkpoint does not fit, or a loss is not finite; the last good checkpoint is kept.
    """
    recipe, world = session.recipe, session.world
    checkpoints = Checkpoints(session.folder, keep=recipe.run.checkpoint_hist)
    trainer, num_epochs, start = _prepare(session, checkpoints)
    if world.is_primary:
        session.save_settings("args.yaml")
    for epoch in range(start, num_epochs):
        loss = trainer.train_epoch(epoch, num_epochs)
        trainer.start_at(epoch + 1)
        is_due = epoch + 1 == num_epochs or (epoch + 1) % recipe.run.val_interval == 0
        scores = _validate(session, trainer, f"epoch {epoch + 1}/{num_epochs}") if is_due else {}
        if world.is_primary:
            metric = sum(score.acc1 for score in scores.values()) / len(scores) if scores else float("-inf")
            state = training_state(trainer.task, trainer.optimizer, trainer.scaler, session.config)
            checkpoints.save(state, epoch=epoch, metric=metric)
            _write_summary(session, trainer, epoch, loss, scores)
    _say_next(session, checkpoints, nothing_left=start >= num_epochs)


def _prepare(session: Session, checkpoints: Checkpoints) -> tuple[Trainer, int, int]:
    """The trainer, the number of epochs, and the first epoch to train."""
    recipe, model, world, loader = session.recipe, session.model, session.world, session.loaders.train
    assert loader is not None, "training opens the training split"
    content = load_weights(model, recipe.run.resume, session.config) if recipe.run.resume else None
    sampler = None
    if isinstance(model, SNNet):
        _prepare_stitching(session, model, loader, is_fresh=content is None and not recipe.model.initial_checkpoint)
        sampler = Sampler(len(model.space), recipe.run.seed, shared=recipe.stitch.sampling == "shared")
    rate = learning_rate(recipe.optim, recipe.data.batch_size * world.size * recipe.optim.grad_accum_steps)
    optimizer = create_optimizer(model, recipe.optim, lr=rate)
    autocast, scaler = create_precision(recipe.optim, world.device)
    task = create_task(model, recipe, world.device)
    if recipe.optim.model_ema:
        task.setup_ema(
            decay=recipe.optim.model_ema_decay,
            use_warmup=recipe.optim.model_ema_warmup,
            device="cpu" if recipe.optim.model_ema_force_cpu else None,
        )
    updates = len(loader) // recipe.optim.grad_accum_steps
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
    trainer = Trainer(task, loader, optimizer, schedule, autocast, scaler, sampler, recipe, world)
    trainer.start_at(start)
    _logger.info("%d epochs of %d steps, learning rate %.3g, into %s", num_epochs, updates, rate, session.folder)
    return trainer, num_epochs, start


def _prepare_stitching(session: Session, model: SNNet, loader: Loader, *, is_fresh: bool) -> None:
    """Fit the stitching layers of a fresh SN-Net, and freeze what is not to be trained."""
    settings, world = session.recipe.stitch, session.world
    if is_fresh and settings.ls_init:
        seed_epoch(session.recipe.run.seed, world.rank, 0)
        share = -(-settings.stitch_init_bs // world.size)
        residuals = fit_stitching_layers(model, some_images(loader, share))
        mean = 100 * sum(residuals.values()) / len(residuals)
        _logger.info("stitching layers fitted at %d joints; %.1f %% of the energy is left over", len(residuals), mean)
    if not settings.fulltune:
        for name, parameter in model.anchors.named_parameters():
            parameter.requires_grad_(name.endswith("cls_token"))


def _validate(session: Session, trainer: Trainer, when: str) -> dict[str, Score]:
    """Scores of the anchors inside the SN-Net, or of the plain model, and of their moving averages."""
    world = session.world
    networks = {"": unwrap_model(trainer.task.get_trainable_module())}
    if trainer.task.has_ema():
        networks["_ema"] = trainer.task.get_trainable_module(ema=True).module
    scores = {}
    for suffix, network in networks.items():
        anchors = dict(enumerate(network.views)) if isinstance(network, SNNet) else {None: "model"}
        for cfg_id, label in anchors.items():
            batches = without_padding(session.loaders.validation, world)
            scores[label + suffix] = evaluate_stitch(
                network, cfg_id, batches, device=world.device, autocast=trainer.autocast
            )
    _logger.info("%s  acc1  %s", when, "  ".join(f"{label} {score.acc1:.2f}" for label, score in scores.items()))
    return scores


def _write_summary(session: Session, trainer: Trainer, epoch: int, loss: float, scores: dict[str, Score]) -> None:
    """Append the epoch to `summary.csv`, as timm does; an epoch without validation leaves its columns empty."""
    path = session.folder / "summary.csv"
    labels = list(session.model.views) if isinstance(session.model, SNNet) else ["model"]
    labels += [f"{label}_ema" for label in labels] if trainer.task.has_ema() else []
    figures = OrderedDict((f"{label}_acc1", scores[label].acc1 if label in scores else "") for label in labels)
    rate = trainer.optimizer.param_groups[0]["lr"]
    update_summary(epoch, OrderedDict(loss=loss), figures, str(path), lr=rate, write_header=not path.exists())


def _say_next(session: Session, checkpoints: Checkpoints, *, nothing_left: bool) -> None:
    _logger.info("%s; the weights are %s", "nothing is left to train" if nothing_left else "done", checkpoints.last)
    if session.config is not None:
        _logger.info(
            "next, measure every stitch: stitchkit train %s --stitch_config %s --eval --resume %s",
            session.recipe.data.data_dir,
            session.config.path,
            checkpoints.last,
        )

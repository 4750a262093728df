"""Training from a recipe: prepare, then train, validate and save epoch by epoch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from timm.utils import unwrap_model
from torch import nn

from stitchkit.data.loaders import Loader, some_images, without_padding
from stitchkit.data.unreadable import report
from stitchkit.distributed import from_primary
from stitchkit.engine.epoch_state import Position
from stitchkit.engine.epochs import run_epoch, setup_ema
from stitchkit.engine.gradients import GradientReducer
from stitchkit.engine.loop import Trainer, count_updates, seed_epoch
from stitchkit.engine.progress import progress
from stitchkit.engine.recorder import Recorder, check_finite, restore_position
from stitchkit.engine.settings import EngineSettings
from stitchkit.engine.signals import StopSignals
from stitchkit.engine.training_state import training_state
from stitchkit.measure.evaluate import Score, evaluate_stitch
from stitchkit.model.snnet import SNNet
from stitchkit.model.solve import fit_stitching_layers
from stitchkit.settings.recipe import Recipe
from stitchkit.train.checkpoint import Checkpoints, header, load_weights, restore
from stitchkit.train.optim import create_optimizer, create_schedule, learning_rate
from stitchkit.train.sampler import Sampler
from stitchkit.train.session import Session
from stitchkit.train.summary import cut_summaries, write_fit, write_losses, write_summary
from stitchkit.train.task import StitchTask, create_task
from stitchkit.train.tracking import Tracking

_logger = logging.getLogger(__name__)

_SETTINGS = "args.yaml"
_EMA = "_ema"


def train(session: Session) -> None:
    """Train from the start, or from `--resume`, to the last epoch.

    Raises:
        InputError: If the checkpoint does not fit, or a loss is not finite; the last good checkpoint is kept.
    """
    recipe, world = session.recipe, session.world
    checkpoints = Checkpoints(session.folder, keep=recipe.run.checkpoint_hist)
    trainer, num_epochs, start, position = _prepare(session, checkpoints)
    from_primary(world, lambda: _tidy(session, checkpoints, start))
    tracking = Tracking(session, start)

    def save_within(epoch: int, _: Position, state: Mapping[str, Any]) -> Path:
        checkpoints.save_within({**state, **header(session)}, epoch=epoch)
        return checkpoints.last

    with StopSignals(world) as signals:
        recorder = Recorder(trainer, signals, save_within)
        for epoch in range(start, num_epochs):
            here, position = position or Position(), None
            loss, scores = _run_epoch(session, trainer, recorder, epoch, num_epochs, here)
            if world.is_primary:
                # A resumed run drops the lines of epochs that it has no checkpoint of, so the line comes first.
                labels = list(_networks(session, trainer))
                write_summary(session.folder, epoch, loss=loss, rate=trainer.rate, scores=scores, labels=labels)
                if isinstance(session.model, SNNet):
                    write_losses(session.folder, epoch, session.model.space, here.stitch_losses)
                state = training_state(trainer) | header(session)
                checkpoints.save(state, epoch=epoch, metric=_metric(scores, recipe.run.eval_metric))
            tracking.log_epoch(epoch, loss=loss, rate=trainer.rate, scores=scores, stitches=here.stitch_losses)
    tracking.finish()
    _say_next(session, checkpoints, nothing_left=start >= num_epochs)


def _tidy(session: Session, checkpoints: Checkpoints, start: int) -> None:
    """Bring the files of the run's folder to where the run begins."""
    cut_summaries(session.folder, start)
    checkpoints.clear()
    session.save_settings(_SETTINGS)


def _run_epoch(
    session: Session, trainer: Trainer, recorder: Recorder, epoch: int, num_epochs: int, here: Position
) -> tuple[float, dict[str, Score]]:
    """Train an epoch, or the rest of it, and validate; the mean loss and the scores."""
    loss = run_epoch(trainer, recorder, epoch, num_epochs, here)
    is_due = epoch + 1 == num_epochs or (epoch + 1) % session.recipe.run.val_interval == 0
    scores = {}
    if is_due:
        when = f"epoch {epoch + 1}/{num_epochs}"
        scores = _validate(session, trainer, when, lambda: recorder.while_validating(epoch, here))
    check_finite(trainer, epoch, [score.loss for score in scores.values()])
    return loss, scores


def _metric(scores: Mapping[str, Score], name: str) -> float:
    """How good an epoch is, the higher the better: the mean over the networks themselves, not their averages."""
    figures = {"top1": lambda score: score.acc1, "top5": lambda score: score.acc5, "loss": lambda score: -score.loss}
    own = [figures[name](score) for label, score in scores.items() if not label.endswith(_EMA)]
    return sum(own) / len(own) if own else float("-inf")


def _prepare(session: Session, checkpoints: Checkpoints) -> tuple[Trainer, int, int, Position | None]:
    """The trainer, the number of epochs, the first epoch to train, and where in it."""
    recipe, model, world, loader = session.recipe, session.model, session.world, session.loaders.train
    assert loader is not None, "training opens the training split"
    content = load_weights(session)[0] if recipe.run.resume else None
    sampler = None
    if isinstance(model, SNNet):
        _prepare_stitching(session, model, loader, is_fresh=content is None and not recipe.model.initial_checkpoint)
        sampler = Sampler(model.trainable_stitches(), recipe.run.seed, shared=recipe.stitch.sampling == "shared")
    rate = learning_rate(recipe.optim, recipe.data.batch_size * world.size * recipe.optim.grad_accum_steps)
    optimizer = create_optimizer(model, recipe.optim, lr=rate)
    loaders = session.loaders
    task = create_task(
        model, recipe, world.device, sides=session.input_size[1:], mean=loaders.mean, std=loaders.std,
        classes=session.classes, sampler=sampler,
    )  # fmt: skip
    updates = count_updates(loader, recipe.optim.grad_accum_steps)
    schedule, num_epochs = create_schedule(recipe, optimizer, updates_per_epoch=updates)
    trainer = Trainer(
        task=task, loader=loader, optimizer=optimizer, schedule=schedule, settings=engine_settings(recipe),
        world=world, folder=session.folder,
    )  # fmt: skip
    setup_ema(trainer)
    start, position = 0, None
    if content is not None and not recipe.run.no_resume_opt:
        start = restore(content, recipe, trainer)
        whole = None if content.get("within") else content["epoch"]
        checkpoints.resumed(recipe.run.resume or "", content["history"], epoch=whole)
    if recipe.schedule.start_epoch is not None:
        start = recipe.schedule.start_epoch
        checkpoints.history = {epoch: metric for epoch, metric in checkpoints.history.items() if epoch < start}
    trainer.reducer = _distribute(task, session) if world.size > 1 else None
    if content is not None and start == content.get("epoch", -1) + 1 and not recipe.run.no_resume_opt:
        position = restore_position(content, trainer, recipe.run.resume or "")
    trainer.start_at(start, 0 if position is None else position.done)
    how = recipe.optim.opt, rate
    _logger.info("%d epochs of %d steps, %s, learning rate %.3g, into %s", num_epochs, updates, *how, session.folder)
    return trainer, num_epochs, start, position


def _distribute(task: StitchTask, session: Session) -> GradientReducer | None:
    """Keep the network alike on all ranks, by the way that benchmarks/gradients.py found to be faster."""
    settings, device, model = session.recipe.distributed, session.world.device, session.model
    if isinstance(model, SNNet) and session.recipe.stitch.sampling == "shared":  # one route is a third of the bytes
        return GradientReducer(model, buffers=not settings.no_ddp_bb)
    # A step uses the parameters of its route only. Where ranks draw their own, most have a gradient on some rank, and
    # torch's wrapper sends them while the backward pass goes on.
    options: dict[str, Any] = {"find_unused_parameters": isinstance(model, SNNet)}
    if settings.no_ddp_bb:  # newer versions of torch warn of this argument, so it is given when needed
        options["broadcast_buffers"] = False
    task.prepare_distributed(device_ids=[device.index] if device.type == "cuda" else None, **options)
    return None


def _prepare_stitching(session: Session, model: SNNet, loader: Loader, *, is_fresh: bool) -> None:
    """Fit the stitching layers of a fresh SN-Net, and freeze what is not to be trained."""
    settings, world = session.recipe.stitch, session.world
    if is_fresh and settings.ls_init:
        seed_epoch(session.recipe.run.seed, world.rank, 0)
        share = -(-settings.stitch_init_bs // world.size)
        batches = progress(some_images(loader, share), world, "fit of the stitching layers", unit="batch")
        residuals = fit_stitching_layers(model, batches, method=settings.ls_method, damping=settings.ls_damping)
        if world.is_primary:
            write_fit(session.folder, model.space, residuals)
        mean = 100 * sum(residuals.values()) / len(residuals)
        _logger.info(
            "stitching layers fitted at %d joints; %.1f %% of what they should reproduce is left over (0 is best)",
            len(residuals), mean,
        )  # fmt: skip
    if not settings.fulltune:
        model.freeze_anchors()


def engine_settings(recipe: Recipe) -> EngineSettings:
    """What a recipe tells the engine."""
    shared = {field.name for field in fields(EngineSettings)} & recipe.flat().keys()
    norms = "" if recipe.distributed.sync_bn else recipe.distributed.dist_bn  # synchronised ones agree by themselves
    own = {"checkpoint_interval": recipe.run.recovery_interval, "dist_bn": norms}
    return EngineSettings(**{key: recipe.flat()[key] for key in shared} | own)


def _networks(session: Session, trainer: Trainer) -> dict[str, tuple[nn.Module, int | None]]:
    """What a validation looks at, by label: anchors or plain model, and their moving averages; network and `cfg_id`."""
    networks = {"": unwrap_model(trainer.task.get_trainable_module())}
    if trainer.task.has_ema() and not trainer.settings.model_ema_force_cpu:
        networks[_EMA] = trainer.task.get_trainable_module(ema=True).module
    labels = list(session.model.views) if isinstance(session.model, SNNet) else ["model"]
    numbers = range(len(labels)) if isinstance(session.model, SNNet) else [None]
    return {
        label + suffix: (network, cfg_id)
        for suffix, network in networks.items()
        for cfg_id, label in zip(numbers, labels, strict=True)
    }


def _validate(session: Session, trainer: Trainer, when: str, after_batch: Callable[[], None]) -> dict[str, Score]:
    """Scores of the anchors inside the SN-Net, or of the plain model, and of their moving averages."""
    loader, world, scores = session.loaders.validation, session.world, {}
    for label, (network, cfg_id) in _networks(session, trainer).items():
        batches = progress(without_padding(loader, world, after_batch), world, label, unit="batch", total=len(loader))
        scores[label] = evaluate_stitch(network, cfg_id, batches, device=world.device, autocast=trainer.autocast)
    _logger.info("%s  acc1  %s", when, "  ".join(f"{label} {score.acc1:.2f}" for label, score in scores.items()))
    report(loader.dataset)
    return scores


def _say_next(session: Session, checkpoints: Checkpoints, *, nothing_left: bool) -> None:
    _logger.info("%s; the weights are %s", "nothing is left to train" if nothing_left else "done", checkpoints.last)
    if session.config is not None:
        settings = session.folder / _SETTINGS
        size = session.world.size
        command = "stitchkit train" if size == 1 else f"./distributed_train.sh {size}"
        _logger.info("next, measure every stitch: %s -c %s --eval --resume %s", command, settings, checkpoints.last)

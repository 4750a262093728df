"""Training from a recipe: prepare, then train, validate and save epoch by epoch."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from stitchkit.data.batches import Loader, some_images
from stitchkit.display import command, counted
from stitchkit.distributed import from_primary
from stitchkit.engine.epoch_state import Position
from stitchkit.engine.epochs import TrainedEpoch, check_finite, train_epochs
from stitchkit.engine.gradients import GradientReducer
from stitchkit.engine.loop import Trainer, seed_epoch
from stitchkit.engine.recovery import advising
from stitchkit.engine.run_log import begin_log
from stitchkit.engine.tracking import Tracking
from stitchkit.engine.training_state import training_state
from stitchkit.errors import InputError
from stitchkit.measure.ledger import LEDGER
from stitchkit.model.snnet import SNNet
from stitchkit.model.solve import fit_stitching_layers
from stitchkit.progress import progress
from stitchkit.settings.by_name import SETTINGS
from stitchkit.settings.files import read_settings_file
from stitchkit.training.checkpoint import Checkpoints, header, load_run, restore
from stitchkit.training.features import FeatureLoss
from stitchkit.training.network import sampler_of
from stitchkit.training.optim import create_optimisation
from stitchkit.training.preserve import UntouchedAnchors, freeze, say_frozen
from stitchkit.training.run_network import run_network
from stitchkit.training.samplers import Sampler
from stitchkit.training.session import Session, engine_settings
from stitchkit.training.summary import cut_summaries, write_fit, write_losses, write_summary
from stitchkit.training.task import StitchTask, create_dense_task, create_task
from stitchkit.training.validation import Anchors, FeatureLosses, Validation

_logger = logging.getLogger(__name__)

_SETTINGS = "args.yaml"
_NOT_WORTH_A_WORD = frozenset([
    *("stitch_config", "pretrained", "pretrained_path", "initial_checkpoint"),  # the checkpoint decides instead
    *("workers", "pin_mem", "no_prefetcher", "dataset_download", "validation_batch_size", "channels_last"),
    *("torchcompile", "torchcompile_mode", "grad_checkpointing", "synchronize_step"),
    *(name for name, group in SETTINGS.items() if group == "run" and name not in ("seed", "eval_metric")),
])  # fmt: skip
"""Settings of the machine and of logging, and those that a resumed run does not read."""
# They say how one start of the run began. Another run takes the file for its settings, and must not begin there.
_OF_ONE_START = ("resume", "no_resume_opt", "start_epoch", "wandb_resume_id")


def train(session: Session, checkpoints: Checkpoints) -> None:
    """Train from the start, or from `--resume`, to the last epoch."""
    recipe, world, folder = session.recipe, session.world, session.folder
    ready = _prepare(session, checkpoints)
    trainer, epochs = ready.trainer, ready.epochs
    if recipe.run.resume and not recipe.run.no_resume_opt:
        _say_changes(session, Path(recipe.run.resume))

    def tidy() -> None:
        """Bring the files in the run's folder to the state at the start of the run."""
        cut_summaries(folder, epochs.start)
        checkpoints.clear()
        if epochs:  # a finished run keeps the settings that it was trained with
            session.save_settings(_SETTINGS, without=_OF_ONE_START)
        begin_log(folder)

    from_primary(world, tidy)
    tracking = open_tracking(session, epochs.start)
    more = header(session) | ready.untouched.state()

    def save_within(epoch: int, _: Position, state: Mapping[str, object]) -> Path:
        return checkpoints.save_within({**state, **more}, epoch=epoch)

    def finish(trained: TrainedEpoch) -> None:
        epoch, loss, stitches = trained.number, trained.loss, trained.position.route_losses
        is_due = epoch + 1 == epochs.stop or (epoch + 1) % recipe.run.val_interval == 0
        judged = ready.validation.judge(trained.after_batch, due=is_due)
        if judged.words:
            _logger.info("epoch %d/%d  %s", epoch + 1, epochs.stop, judged.words)
        check_finite(trainer, epoch, judged.losses)
        if world.is_primary:
            # Lines before the checkpoint: a resumed run drops the lines of epochs without a checkpoint.
            write_summary(folder, epoch, loss=loss, rate=trained.position.rate, columns=judged.columns)
            if stitches:
                write_losses(folder, epoch, run_network(session.model).space, stitches)
            checkpoints.save(training_state(trainer) | more, epoch=epoch, metric=judged.metric)
        figures = {"train_loss": loss, "lr": trained.position.rate, **judged.figures}
        figures |= {f"stitch_loss/{cfg_id}": mean for cfg_id, (mean, _) in stitches.items()}
        tracking.log(figures, epoch=epoch)

    with advising(checkpoints, clip="--clip-grad", amp=trainer.settings.amp):
        train_epochs(trainer, epochs, ready.position, save=save_within, finish=finish)
    tracking.finish()
    _say_next(session, checkpoints, nothing_left=not epochs)


def _say_changes(session: Session, resume: Path) -> None:
    """Say in one line how the settings differ from those that a run saved beside the checkpoint it resumes from."""
    file = resume.with_name(_SETTINGS)
    if not session.world.is_primary:
        return
    if not file.is_file():
        _logger.info("'%s' with the settings of the first start is missing, so changes are unknown", file)
        return
    # As the file will say it: lists for tuples.
    now = json.loads(json.dumps(session.recipe.for_files()))
    with suppress(InputError):  # somebody else's file of this name is no reason not to resume
        before = read_settings_file(file)
        known = (key for key in sorted(now) if key in before and key not in _NOT_WORTH_A_WORD)
        if changes := [f"{key} {before[key]} -> {now[key]}" for key in known if before[key] != now[key]]:
            _logger.info("the run resumes with other settings: %s", ", ".join(changes))


def open_tracking(session: Session, start: int) -> Tracking:
    """Logging of each epoch's figures, as the flags request."""
    run, options = session.recipe.run, None
    if run.log_wandb:
        options = {"project": run.wandb_project, "tags": run.wandb_tags, "id": run.wandb_resume_id}
        options["resume"] = "must" if run.wandb_resume_id else None
    board = start if run.log_tensorboard else None
    return Tracking(session.folder, session.world, session.recipe.flat(), options=options, board=board)


@dataclass(frozen=True)
class _Ready:
    """A training that is ready to begin, or to resume."""

    trainer: Trainer
    epochs: range
    position: Position | None  # within the first epoch
    untouched: UntouchedAnchors
    validation: Validation


def _prepare(session: Session, checkpoints: Checkpoints) -> _Ready:
    recipe, model, world, loaders = session.recipe, session.model, session.world, session.loaders
    loader, resume, content = loaders.train, recipe.run.resume or "", None
    assert loader is not None, "training opens the training split"
    if resume:
        content = load_run(session)
    sampler = features = None
    if isinstance(model, SNNet):
        freeze(model, recipe.stitch)
        sampler = sampler_of(model, recipe)  # refuses a network without anything to train
        if line := say_frozen(model, recipe.stitch):
            _logger.info("%s", line)
        if recipe.stitch.uses_features:
            features = FeatureLoss(model, recipe.stitch)
        if content is None and not recipe.model.initial_checkpoint and recipe.stitch.ls_init:
            _fit(session, model, loader)
    untouched = UntouchedAnchors(features.copies if features else None)
    how = create_optimisation(model, recipe, batches=len(loader), ranks=world.size)
    task: StitchTask
    if run_network(model).level_blocks:
        task = create_dense_task(model, recipe, world.device, sampler)
    else:
        task = create_task(
            model, recipe, world.device, sides=session.input_size[1:], mean=loaders.mean, std=loaders.std,
            classes=session.classes, sampler=sampler, features=None if features is None else features.term,
        )  # fmt: skip
    trainer = Trainer(
        task=task, loader=loader, optimizer=how.optimizer, schedule=how.schedule, settings=engine_settings(recipe),
        world=world, folder=session.folder,
    )  # fmt: skip
    uses_labels = recipe.stitch.uses_labels
    _distribute(trainer, session, sampler, uses_labels=uses_labels)
    validation: Validation
    if features is not None and not uses_labels:
        validation = FeatureLosses(session, trainer, features)
    else:
        validation = Anchors(session, trainer, untouched)
    validation.say_what_ranks()
    start, position = 0, None
    if content is not None and not recipe.run.no_resume_opt:
        start, position = restore(content, recipe, trainer)
        untouched.restore(content, resume)
        checkpoints.resumed(resume, content)
    else:
        validation.before()
    if recipe.schedule.start_epoch is not None:
        start = recipe.schedule.start_epoch
        checkpoints.history = {epoch: metric for epoch, metric in checkpoints.history.items() if epoch < start}
    trainer.start_at(start, 0 if position is None else position.done)
    _logger.info(
        "%s of %s, %s, learning rate %.3g, into %s", counted(how.epochs, "epoch"),
        counted(how.updates_per_epoch, "step"), recipe.optim.opt, how.rate, session.folder,
    )  # fmt: skip
    return _Ready(trainer, range(start, how.epochs), position, untouched, validation)


def _distribute(trainer: Trainer, session: Session, sampler: Sampler | None, *, uses_labels: bool) -> None:
    """Keep the network equal on all ranks, in the way that is faster according to benchmarks/gradients.py."""
    model, broadcast = session.model, not session.recipe.distributed.no_ddp_bb
    # One route has a third of the bytes. Without labels, torch's wrapper would wait for the gradients of heads.
    if (sampler is not None and sampler.shared) or not uses_labels:
        trainer.reducer = GradientReducer(model, buffers=broadcast) if trainer.world.size > 1 else None
    else:
        # A step uses only the parameters of its route. If each rank draws its own, most parameters have a gradient on
        # some rank, and torch's wrapper sends them during the backward pass.
        trainer.prepare_distributed(find_unused=len(run_network(model).space) > 1, broadcast_buffers=broadcast)


def _fit(session: Session, model: SNNet, loader: Loader) -> None:
    settings, world = session.recipe.stitch, session.world
    seed_epoch(session.recipe.run.seed, world.rank, 0)
    share = -(-settings.stitch_init_bs // world.size)
    num_batches = -(-share // session.recipe.data.batch_size)
    images = some_images(loader, share)
    batches = progress(images, world, "fit of the stitching layers", unit="batches", total=num_batches)
    residuals = fit_stitching_layers(model, batches)
    if world.is_primary:
        write_fit(session.folder, model.space, residuals)
    mean = 100 * sum(residuals.values()) / len(residuals)
    message = "stitching layers fitted at %d joints; on average, %.1f %% of the target remains unexplained (0 is best)"
    _logger.info(message, len(residuals), mean)


def _say_next(session: Session, checkpoints: Checkpoints, *, nothing_left: bool) -> None:
    _logger.info("%s; the weights are %s", "nothing is left to train" if nothing_left else "done", checkpoints.last)
    if session.config is not None:
        # Of this machine, where the command will run.
        ranks = os.environ.get("LOCAL_WORLD_SIZE", str(session.world.size))
        launcher = [] if ranks == "1" else ["torchrun", "--standalone", "--nproc-per-node", ranks, "-m"]
        flags = ["-c", session.folder / _SETTINGS, "--eval", "--resume", checkpoints.last]
        ledger = session.folder / LEDGER
        if ledger.exists() and ledger.stat().st_mtime_ns < checkpoints.last.stat().st_mtime_ns:
            # It is of other weights, and is kept.
            name = session.folder.relative_to(session.recipe.run.output)
            flags.append(f"--experiment={name}-{session.recipe.schedule.epochs}")
        _logger.info("next, measure every stitch: %s", command(*launcher, "stitchkit", "train", *flags))

"""Run a job: train, test and save epoch by epoch, and write its trajectory."""

from __future__ import annotations

import argparse
import logging
import math
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from stitchkit.assembly.config.job import JobConfig
from stitchkit.assembly.config.job_settings import WRITTEN
from stitchkit.assembly.train.checkpoint import JobCheckpoints, check_origins, header, load_pieces, load_weights, resume
from stitchkit.assembly.train.job import Job, JobPaths, deterministic, job_paths, job_plan, open_job
from stitchkit.assembly.train.metrics import TRAIN_LOSS, trained_column
from stitchkit.assembly.train.result import IMAGES, Row, read_metadata, update_metadata, write_frame, write_rows
from stitchkit.assembly.train.task import JobTask, scale_losses
from stitchkit.assembly.train.testing import Evaluator
from stitchkit.data.identity import images_digest
from stitchkit.display import counted
from stitchkit.distributed import World, from_primary
from stitchkit.engine import recovery
from stitchkit.engine.epoch_state import Position
from stitchkit.engine.epochs import TrainedEpoch, check_finite, train_epochs
from stitchkit.engine.lock import made
from stitchkit.engine.loop import Trainer
from stitchkit.engine.recovery import AUTO, TRAIN_LOCK, advising, advising_evaluation
from stitchkit.engine.run_log import begin_log
from stitchkit.engine.tracking import Tracking
from stitchkit.engine.training_state import training_state
from stitchkit.errors import InputError
from stitchkit.files import write_text
from stitchkit.optional import optional
from stitchkit.paths import paths_for_file
from stitchkit.settings.files import settings_text

_logger = logging.getLogger(__name__)

_MB = 1024**2


def run_job(
    config: JobConfig, source: str | Path | None = None, *, is_quick: bool = False, download: bool = False
) -> Path:
    """Run a job and return the file of its result; every rank calls this.

    Args:
        source: The file of the job, which errors name.
        is_quick: Use a folder of its own, whose files are replaced.
        download: Download missing data sets.
    """
    optional("pandas", "jobs", "a job's result")  # which is a table of pandas, but only written at the end
    source = None if source is None else Path(source)
    paths = job_paths(config, source, is_quick=is_quick)
    files = JobCheckpoints(paths.folder)
    with (
        recovery.entered(paths.folder / TRAIN_LOCK, config.device, flag="-o") as world,
        made(paths.result.parent, "-o"),
        deterministic(config.deterministic),
    ):
        if is_quick:
            from_primary(world, lambda: _remove(*files.candidates(), paths.result))
        if from_primary(world, lambda: _is_done(config, paths, files)):
            _logger.info("nothing is left to train; the result is %s", paths.result)
            return paths.result
        config = _find_resume(config, files, paths.result, world)
        job = open_job(config, world, source, paths, download=download)
        with recovery.launched(paths.folder, world):
            _run(job, files)
    return paths.result


def _remove(*files: Path) -> None:
    for file in files:
        file.unlink(missing_ok=True)


def _is_done(config: JobConfig, paths: JobPaths, files: JobCheckpoints) -> bool:
    """Whether `--resume auto` finds no checkpoint, but the result of a training with the same settings."""
    is_new = config.resume_from != AUTO or config.test_only or bool(files.candidates())
    if is_new or not (paths.result.exists() and paths.settings.exists()):
        return False
    before = replace(JobConfig.load(paths.settings), load_from=None)  # `resume_from` takes its place
    return not before.changes(config)


def _find_resume(config: JobConfig, files: JobCheckpoints, result: Path, world: World) -> JobConfig:
    """The job with a file, or None if there is none yet, in place of `resume_from: auto`."""
    file, _ = recovery.find_resume(config.resume_from, files, world, only="test" if config.test_only else "")
    if result.exists() and (config.test_only or not file):
        raise InputError(f"'{result}' exists, so this job is done; choose another -o or --metrics-output, or remove it")
    if not config.test_only:
        recovery.check_unused(files, file, flag="-o")
    return replace(config, resume_from=file)


def _run(job: Job, files: JobCheckpoints) -> None:
    config, world, trainer = job.config, job.world, job.trainer
    start, position = _begin(job, files)
    job.metadata[IMAGES] = from_primary(world, lambda: _digests(job))
    evaluator = Evaluator(job)
    if world.is_primary:
        files.clear()
        settings = {key: value for key, value in config.to_dict().items() if key not in WRITTEN}
        write_text(job.paths.settings, settings_text(paths_for_file(settings, job.paths.settings)))
        update_metadata(job.paths.metadata, job.metadata, writer=job.paths.result.stem)
        begin_log(job.paths.folder)
    about = {key: getattr(config, key) for key in ("project", "entity", "group", "id")}
    options = about | {"resume": "allow" if config.id else None} if config.project else None
    tracking = Tracking(job.paths.folder, world, config.to_dict(), options=options)

    def add(row: Row) -> None:
        if not world.is_primary:
            return
        job.rows.append(row)
        write_rows(job.paths.result, job.rows)
        epoch, step = int(row["Epoch"]), int(row["Step"])
        tracking.log(row, epoch=epoch, step=step)
        is_wanted = epoch > config.start_epoch or config.checkpoint_initial_model
        if trainer is not None and is_wanted and (config.save_checkpoints or config.checkpoint_interval):
            state = training_state(trainer) | header(job, trainer, epoch, step)
            if config.save_checkpoints:
                files.write_epoch(step, state)
            else:
                files.write_newest(state)

    if trainer is None or not job.rows:
        first: Row = {"Epoch": start, "Step": 0 if trainer is None else start * trainer.updates_per_epoch}
        if config.test_only or config.checkpoint_initial_model:
            with advising_evaluation():
                first |= evaluator.evaluate("before training")[0]
        add(first)
    if trainer is not None:
        _train(job, trainer, files, evaluator, add, range(start, config.train_config.epochs), position)
    if world.is_primary:
        write_frame(job.paths.result, job.rows)
    tracking.finish()
    _logger.info("done; the result is %s", job.paths.result)


def _digests(job: Job) -> str:
    """Each test set and the digest of its images, which those of earlier epochs and of other seeds must equal."""
    # One text, because the published scripts use the metadata as the keys of a table.
    digests = ", ".join(f"{task.config.name} {images_digest(task.test.dataset)}" for task in job.data)
    others = {*job.paths.result.parent.glob("result*.csv")} - {job.paths.result.with_suffix(".csv")}
    before = read_metadata(job.paths.metadata).get(IMAGES, digests) if job.rows or others else digests
    if before != digests:
        raise InputError(
            f"'{job.paths.metadata.parent}' has figures of other test images: they have changed since, in names, "
            "labels, sizes or content; choose another -o, or remove the folder"
        )
    return digests


def _begin(job: Job, files: JobCheckpoints) -> tuple[int, Position | None]:
    """Load the state that the job starts from: completed epochs, the position in the next one, and their rows."""
    config, start, position = job.config, job.config.start_epoch, None
    if config.load_from:
        if isinstance(config.load_from, str):
            load_weights(job.network, config.load_from, strict=config.strict_load)
        else:
            load_pieces(job.network, config.load_from)
        if job.trainer is not None and (average := job.trainer.task.average) is not None:
            average.load_state_dict(job.network.state_dict())  # it was copied before these were loaded
    if config.resume_from:
        start, position = resume(job, config.resume_from)
        files.read(config.resume_from)
    else:
        if job.trainer is not None and len(job.data) > 1:
            assert isinstance(job.trainer.task, JobTask)
            scale_losses(job.trainer.task, job.trainer.loader)
            pairs = zip(job.data, job.trainer.task.scales.tolist(), strict=True)
            scales = ", ".join(f"{task.config.name} {scale:.3g}" for task, scale in pairs)
            _logger.info("losses are divided by their start: %s", scales)
        check_origins(job.network, [task.classes for task in job.data], strict=config.test_only)
    if job.trainer is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of the steps skipped by --start-epoch
            job.trainer.start_at(start, 0 if position is None else position.done)
        norms = [each for each in job.network.modules() if isinstance(each, _BatchNorm) and each.track_running_stats]
        learning = sum(norm.training for norm in norms)
        learn = f", {learning} of {len(norms)} batch norms learn statistics" if norms else ""
        _logger.info(
            "%s of %s, learning rate %.3g, %d of %d parameters train%s, into %s",
            counted(config.train_config.epochs, "epoch"), counted(job.trainer.updates_per_epoch, "step"),
            job.trainer.rate, job.metadata["num_trainable_params"], job.metadata["num_params"],
            learn, job.paths.folder,
        )  # fmt: skip
    return start, position


def _train(
    job: Job, trainer: Trainer, files: JobCheckpoints, evaluator: Evaluator, add: Callable[[Row], None], epochs: range,
    position: Position | None,
) -> None:  # fmt: skip
    task = trainer.task
    assert isinstance(task, JobTask)
    before = job.rows[-1].get("Time/Total", 0.0) if job.rows else 0.0
    began = time.perf_counter()

    def save_within(epoch: int, within: Position, state: Mapping[str, object]) -> Path:
        step = epoch * trainer.updates_per_epoch + within.done
        return files.write_newest({**state, **header(job, trainer, epoch, step)})

    def finish(trained: TrainedEpoch) -> None:
        row, losses = _row(job, trainer, task, trained), list[float]()
        if job.config.eval_checkpoints:
            figures, losses = evaluator.evaluate(f"epoch {trained.number + 1}/{epochs.stop}", trained.after_batch)
            row |= figures
        check_finite(trainer, trained.number, losses)
        task.forget()  # only now: if a signal ends the validation, the saved state needs the counts of the epoch
        row["Time/Total"] = before + time.perf_counter() - began
        add(row)

    with advising(files, clip="train_config.max_grad_norm", amp=trainer.settings.amp):
        train_epochs(trainer, epochs, position, save=save_within, finish=finish)


def _row(job: Job, trainer: Trainer, task: JobTask, trained: TrainedEpoch) -> Row:
    world, seconds = job.world, trained.seconds
    row: Row = {
        "Epoch": trained.number + 1, "Step": trainer.steps(trained.number).stop, "LR": trained.position.rate,
        "Loss": task.last["loss"].item(), "Time/Data": trainer.loader.waited / trained.steps,
        "Time/Step": seconds / trained.steps, "Time/Img Per Sec": trainer.loader.images * world.size / seconds,
        "Time/Per Epoch": seconds, "Proc Mem": _resident() / _MB,
    }  # fmt: skip
    if world.device.type == "cuda":
        row["GPU Mem"] = torch.cuda.max_memory_allocated(world.device) / _MB
    row |= _accuracies(job, task.last["accuracy"].tolist(), is_mean=False)
    row[TRAIN_LOSS] = trained.loss
    row |= _accuracies(job, task.accuracies(), is_mean=True)
    losses = [(each.config.name, loss) for each, of in zip(job.data, task.losses, strict=True) for loss in of.names]
    if len(losses) > 1:  # the only loss is `Loss`
        for is_mean, figures in ((False, task.last["losses"].tolist()), (True, task.mean_losses())):
            columns = [trained_column(*loss, is_mean=is_mean) for loss in losses]
            row |= dict(zip(columns, figures, strict=True))
    return row


def _accuracies(job: Job, figures: Sequence[float], *, is_mean: bool) -> Row:
    pairs = zip(job.data, figures, strict=True)
    names = ((task.config.name, name, figure) for task, figure in pairs for name in task.config.trained_figures)
    return {trained_column(task, name, is_mean=is_mean): figure for task, name, figure in names}


def _resident() -> float:
    """Resident memory of this process in bytes; NaN if the system does not tell."""
    file = Path("/proc/self/statm")
    return float(int(file.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")) if file.exists() else math.nan


def run(flags: argparse.Namespace) -> None:
    """Run `stitchkit job`."""
    settings = vars(flags)
    source, download = Path(settings.pop("config")), settings.pop("download", False)
    is_quick, is_dry = settings.pop("smoke_test"), settings.pop("dry_run")
    if is_quick:
        ranks = int(os.environ.get("WORLD_SIZE", 1))
        settings = {"epochs": 1, "max_batches": 3 * ranks, "save_checkpoints": True, "print_freq": 1, **settings}
    config = JobConfig.load(source, **settings)
    if is_dry:
        print(job_plan(config, source))
    else:
        run_job(config, source, is_quick=is_quick, download=download)

"""Run a job: train, test and save epoch by epoch, and write its trajectory."""

from __future__ import annotations

import logging
import math
import os
import time
import warnings
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tqdm.contrib.logging import logging_redirect_tqdm

from stitchkit.assembly.config.job import WRITTEN, JobConfig
from stitchkit.assembly.config.optim import JobSchedule
from stitchkit.assembly.train.checkpoint import JobCheckpoints, check_position, load_weights, resume
from stitchkit.assembly.train.classes import check_origins
from stitchkit.assembly.train.job import Job, check_unused, deterministic, open_job, places_of
from stitchkit.assembly.train.result import Trajectory, check_pandas, update_metadata, write_yaml
from stitchkit.assembly.train.task import JobTask
from stitchkit.assembly.train.testing import Exam
from stitchkit.classes import check_classes, trained_classes
from stitchkit.data.unreadable import explained
from stitchkit.distributed import World, init_world
from stitchkit.engine.epoch_state import Position
from stitchkit.engine.epochs import run_epoch
from stitchkit.engine.lock import alone, made
from stitchkit.engine.loop import Trainer
from stitchkit.engine.recorder import Recorder, check_finite
from stitchkit.engine.recovery import find_resume, is_restart, launched
from stitchkit.engine.signals import StopSignals
from stitchkit.engine.tracking import start_run
from stitchkit.engine.training_state import training_state
from stitchkit.errors import InputError

_logger = logging.getLogger(__name__)

_MB = 1024**2


def run_job(config: JobConfig, source: str | Path | None = None) -> Path:
    """Run a job; every rank calls this.

    Args:
        config: Its settings.
        source: The file they were read from; errors name it.

    Returns:
        The file of the result.

    Raises:
        InputError: If anything cannot be used as asked, or the training fails; the last checkpoint is kept.
    """
    check_pandas()
    places = places_of(config, None if source is None else Path(source))
    files = JobCheckpoints(places.folder)
    world = init_world(config.device)
    try:
        with (
            made(places.folder, "-o"),
            made(places.result.parent, "-o"),
            explained(),
            logging_redirect_tqdm(),
            deterministic(config.deterministic),
            alone(places.folder / ".train.lock", world),
        ):
            config = _find_resume(config, files, world)
            check_unused(config, places, files)
            job = open_job(config, world, Path(source) if source else None, places)
            with launched(places.folder, world):
                _run(job, files)
    finally:
        dist.destroy_process_group()
    return places.result


def _find_resume(config: JobConfig, files: JobCheckpoints, world: World) -> JobConfig:
    """The job with a file in place of `resume_from: auto`, or nothing where there is none yet."""
    restarted = not config.test_only and is_restart(files, world)
    found = find_resume(config.resume_from, files, world, restarted=restarted)
    if config.test_only and config.resume_from and found is None:
        raise InputError(f"'{files.folder}' holds no checkpoint to test; give one as --resume FILE")
    return config if found == config.resume_from else config.override(resume_from=found)


def _run(job: Job, files: JobCheckpoints) -> None:
    config, world = job.config, job.world
    start, position, trajectory = _begin(job, files)
    exam = Exam(job)
    if world.is_primary:
        files.clear()
        settings = {key: value for key, value in config.to_dict().items() if key not in WRITTEN}
        write_yaml(job.places.settings, settings)
        update_metadata(job.places.metadata, job.metadata)
    tracker = None
    if config.project and world.is_primary:
        names = {"project": config.project, "entity": config.entity, "group": config.group, "id": config.id}
        tracker = start_run(job.places.folder, config.to_dict(), **names, resume="allow" if config.id else None)
    for row in _rows(job, files, exam, start, position, trajectory):
        if world.is_primary:
            trajectory.add(row)
            if tracker is not None:
                tracker.log(row, step=row["Step"])
            if job.trainer is not None and _is_saved(config, row):
                state = training_state(job.trainer) | _header(job, row["Epoch"], trajectory)
                files.save(state, step=row["Step"], keep=config.save_checkpoints)
    if world.is_primary:
        trajectory.close()
    if tracker is not None:
        tracker.finish()
    _logger.info("done; the result is %s", job.places.result)


def _is_saved(config: JobConfig, row: Mapping[str, Any]) -> bool:
    is_wanted = row["Epoch"] > config.start_epoch or config.checkpoint_initial_model
    return is_wanted and (config.save_checkpoints or config.checkpoint_interval > 0)


def _begin(job: Job, files: JobCheckpoints) -> tuple[int, Position | None, Trajectory]:
    """Load what the job starts from: the epochs that are done, where in the next one it resumes, and their rows."""
    config, rows, start, position = job.config, [], job.config.start_epoch, None
    classes = [list(task.classes) for task in job.data]
    if config.load_from:
        load_weights(job.network, config.load_from, strict=config.strict_load)
    if config.resume_from:
        content, position = resume(job.network, job.trainer, config.resume_from, config.to_dict())
        files.read(config.resume_from)
        start, rows = int(content["epoch"]), list(content["rows"])
        check_classes(trained_classes(content), classes, config.resume_from, strict=True)
        if content["classes"] != [list(names) for names in classes]:
            raise InputError(f"checkpoint '{config.resume_from}' was trained on other tasks; labels would not agree")
        if job.trainer is not None:
            steps, limit = job.trainer.updates_per_epoch, config.train_config.max_steps
            check_position(content, config.resume_from, steps=steps, max_steps=limit)
    else:
        check_origins(job.network, classes, strict=config.test_only)
    if job.trainer is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch misses the steps of the epochs that --start-epoch counts as done
            job.trainer.start_at(start, 0 if position is None else position.done)
        _logger.info(
            "%d epochs of %d steps, learning rate %.3g, %d of %d parameters train, into %s",
            config.train_config.epochs, job.trainer.updates_per_epoch, job.trainer.rate,
            job.metadata["num_trainable_params"], job.metadata["num_params"], job.places.folder,
        )  # fmt: skip
    return start, position, Trajectory(job.places.result, [] if config.test_only else rows)


def _rows(
    job: Job, files: JobCheckpoints, exam: Exam, start: int, position: Position | None, trajectory: Trajectory
) -> Iterator[dict[str, Any]]:
    """Rows of the result, as the epochs go by."""
    config, trainer = job.config, job.trainer
    if trainer is None or not trajectory.rows:
        first: dict[str, Any] = {"Epoch": start, "Step": 0 if trainer is None else start * trainer.updates_per_epoch}
        if config.test_only or config.checkpoint_initial_model:
            first |= exam.sit("before training")
        yield first
    if trainer is None:
        return

    def save_within(epoch: int, here: Position, state: Mapping[str, Any]) -> Path:
        step = epoch * trainer.updates_per_epoch + here.done
        return files.save({**state, **_header(job, epoch, trajectory)}, step=step, keep=False)

    epochs = config.train_config.epochs
    before = trajectory.rows[-1].get("Time/Total", 0.0) if trajectory.rows else 0.0
    began = time.perf_counter()
    with StopSignals(job.world) as signals:
        recorder = Recorder(trainer, signals, save_within)
        for epoch in range(start, epochs):
            if not trainer.steps(epoch):
                break
            here, position = position or Position(), None
            row = _train_epoch(job, trainer, recorder, epoch, here)
            if config.eval_checkpoints:
                row |= exam.sit(f"epoch {epoch + 1}/{epochs}", partial(recorder.while_validating, epoch, here))
            trainer.task.forget()  # only now: a validation that a signal ended is saved with what the epoch has counted
            row["Time/Total"] = before + time.perf_counter() - began
            yield row


def _train_epoch(job: Job, trainer: Trainer, recorder: Recorder, epoch: int, here: Position) -> dict[str, Any]:
    """Train an epoch, or the rest of it: what the result says of it."""
    task, schedule, world = trainer.task, trainer.schedule, job.world
    assert isinstance(task, JobTask)
    began, done = time.perf_counter(), here.done
    loss = run_epoch(trainer, recorder, epoch, job.config.train_config.epochs, here)
    trainer.loader.report()
    check_finite(trainer, epoch)
    took, steps = time.perf_counter() - began, max(here.done - done, 1)
    row: dict[str, Any] = {
        "Epoch": epoch + 1,
        "Step": trainer.steps(epoch).stop,
        "LR": schedule.used if isinstance(schedule, JobSchedule) else trainer.rate,
        "Loss": task.last["loss"].item(),
        "Time/Data": trainer.loader.waited / steps,
        "Time/Step": took / steps,
        "Time/Img Per Sec": trainer.loader.images * world.size / took,
        "Time/Per Epoch": took,
        "Proc Mem": _resident() / _MB,
    }
    if world.device.type == "cuda":
        row["GPU Mem"] = torch.cuda.max_memory_allocated(world.device) / _MB
    names = [each.config.name for each in job.data]
    last = zip(names, task.last["accuracy"].tolist(), strict=True)
    mean = zip(names, task.accuracies(), strict=True)
    row |= {f"{name}/Accuracy": figure for name, figure in last} | {"Overall/Train Loss": loss}
    return row | {f"Overall/Train {name}/Accuracy": figure for name, figure in mean}


def _resident() -> float:
    """Bytes of memory that this process holds, where the system says so."""
    place = Path("/proc/self/statm")
    if not place.exists():
        return math.nan
    return float(int(place.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))


def _header(job: Job, epoch: int, trajectory: Trajectory) -> dict[str, Any]:
    """What a checkpoint says of its job beside the state of the training."""
    trainer = job.trainer
    assert trainer is not None
    return {
        "opt": type(trainer.optimizer).__name__,
        "scheduler": trainer.schedule.state_dict() if isinstance(trainer.schedule, JobSchedule) else None,
        "epoch": epoch,
        "steps_per_epoch": trainer.updates_per_epoch,
        "rows": trajectory.rows,
        "classes": [list(task.classes) for task in job.data],
        "config": job.config.to_dict(),
    }

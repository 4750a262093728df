"""Run a job: train, test and save epoch by epoch, and write its trajectory."""

from __future__ import annotations

import logging
import math
import os
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from timm.utils import distribute_bn
from tqdm.contrib.logging import logging_redirect_tqdm

from stitchkit.assembly.config.job import WRITTEN, JobConfig
from stitchkit.assembly.train.checkpoint import check_position, load_weights, resume, save
from stitchkit.assembly.train.classes import check_origins
from stitchkit.assembly.train.job import Job, deterministic, open_job
from stitchkit.assembly.train.result import Trajectory, check_pandas, update_metadata, write_yaml
from stitchkit.assembly.train.task import JobTask
from stitchkit.assembly.train.testing import Exam
from stitchkit.classes import check_classes, trained_classes
from stitchkit.data.unreadable import explained
from stitchkit.distributed import init_world
from stitchkit.errors import InputError
from stitchkit.train.loop import Trainer
from stitchkit.train.tracking import start_run

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
    world = init_world(config.device)
    try:
        with explained(), logging_redirect_tqdm(), deterministic(config.deterministic):
            job = open_job(config, world, Path(source) if source else None)
            _run(job)
    finally:
        dist.destroy_process_group()
    return job.places.result


def _run(job: Job) -> None:
    config, world = job.config, job.world
    start, trajectory = _begin(job)
    exam = Exam(job)
    if world.is_primary:
        settings = {key: value for key, value in config.to_dict().items() if key not in WRITTEN}
        write_yaml(job.places.settings, settings)
        update_metadata(job.places.metadata, job.metadata)
    tracker = None
    if config.project and world.is_primary:
        names = {"project": config.project, "entity": config.entity, "group": config.group, "id": config.id}
        tracker = start_run(job.places.folder, config.to_dict(), **names, resume="allow" if config.id else None)
    for row in _rows(job, exam, start, trajectory):
        if world.is_primary:
            trajectory.add(row)
            if tracker is not None:
                tracker.log(row, step=row["Step"])
            if job.trainer is not None and config.save_checkpoints and _is_saved(config, row):
                save(job.places.folder, _state(job, row["Epoch"], trajectory), step=row["Step"])
    if world.is_primary:
        trajectory.close()
    if tracker is not None:
        tracker.finish()
    _logger.info("done; the result is %s", job.places.result)


def _is_saved(config: JobConfig, row: Mapping[str, Any]) -> bool:
    return row["Epoch"] > config.start_epoch or config.checkpoint_initial_model


def _begin(job: Job) -> tuple[int, Trajectory]:
    """Load what the job starts from: the epochs that are done, and their rows."""
    config, rows, start = job.config, [], job.config.start_epoch
    classes = [list(task.classes) for task in job.data]
    if config.load_from:
        load_weights(job.network, config.load_from, strict=config.strict_load)
    if config.resume_from:
        optimizer = None if job.trainer is None else job.trainer.optimizer
        content = resume(job.network, optimizer, job.schedule, config.resume_from, config.to_dict())
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
            job.trainer.start_at(start)
        _logger.info(
            "%d epochs of %d steps, learning rate %.3g, %d of %d parameters train, into %s",
            config.train_config.epochs, job.trainer.updates_per_epoch, job.trainer.rate,
            job.metadata["num_trainable_params"], job.metadata["num_params"], job.places.folder,
        )  # fmt: skip
    return start, Trajectory(job.places.result, [] if config.test_only else rows)


def _rows(job: Job, exam: Exam, start: int, trajectory: Trajectory) -> Iterator[dict[str, Any]]:
    """Rows of the result, as the epochs go by."""
    config, trainer = job.config, job.trainer
    if trainer is None or not trajectory.rows:
        first: dict[str, Any] = {"Epoch": start, "Step": 0 if trainer is None else start * trainer.updates_per_epoch}
        if config.test_only or config.checkpoint_initial_model:
            first |= exam.sit("before training")
        yield first
    if trainer is None:
        return
    epochs, limit = config.train_config.epochs, config.train_config.max_steps
    before = trajectory.rows[-1].get("Time/Total", 0.0) if trajectory.rows else 0.0
    began = time.perf_counter()
    for epoch in range(start, epochs):
        if limit is not None and epoch * trainer.updates_per_epoch >= limit:
            break
        row = _train_epoch(job, trainer, epoch, epochs)
        if config.eval_checkpoints:
            row |= exam.sit(f"epoch {epoch + 1}/{epochs}")
        row["Time/Total"] = before + time.perf_counter() - began
        yield row


def _train_epoch(job: Job, trainer: Trainer, epoch: int, num_epochs: int) -> dict[str, Any]:
    """Train an epoch: what the result says of it."""
    task, schedule, world = trainer.task, job.schedule, job.world
    assert isinstance(task, JobTask)
    began = time.perf_counter()
    loss = trainer.train_epoch(epoch, num_epochs)
    took = time.perf_counter() - began
    trainer.loader.report()
    if schedule is not None:
        schedule.loss = loss
    rate = trainer.rate
    trainer.start_at(epoch + 1)
    if world.size > 1:
        distribute_bn(task.get_trainable_module(), world.size, False)  # a mean would not leave frozen ones bitwise
    if not all(parameter.isfinite().all() for parameter in job.network.parameters()):
        raise InputError(
            f"weights are not finite after epoch {epoch + 1}; stopped, the last checkpoint is kept. Lower the learning "
            "rate, or set max_grad_norm"
        )
    end = (epoch + 1) * trainer.updates_per_epoch
    step = end if trainer.max_steps is None else min(end, trainer.max_steps)
    steps = step - epoch * trainer.updates_per_epoch
    row: dict[str, Any] = {
        "Epoch": epoch + 1,
        "Step": step,
        "LR": rate if schedule is None else schedule.used,
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


def _state(job: Job, epoch: int, trajectory: Trajectory) -> dict[str, Any]:
    assert job.trainer is not None
    optimizer = job.trainer.optimizer
    return {
        "state_dict": job.network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "opt": type(optimizer).__name__,
        "scheduler": None if job.schedule is None else job.schedule.state_dict(),
        "epoch": epoch,
        "steps_per_epoch": job.trainer.updates_per_epoch,
        "rows": trajectory.rows,
        "classes": [list(task.classes) for task in job.data],
        "config": job.config.to_dict(),
    }

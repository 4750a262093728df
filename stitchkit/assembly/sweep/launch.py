"""Running a sweep: finished jobs are skipped, failed ones are listed, and the rest are started and watched."""

from __future__ import annotations

import logging
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from stitchkit.assembly.config.job import JobConfig
from stitchkit.assembly.sweep.cluster import LocalPool, Slurm
from stitchkit.assembly.sweep.plan import PlannedJob
from stitchkit.assembly.sweep.worker import SweepJob
from stitchkit.errors import InputError
from stitchkit.files import own_folder

_log = logging.getLogger(__name__)


def write_folders(plan: Sequence[PlannedJob], folder: Path, seed: int | None) -> list[SweepJob]:
    """A folder for every job that applies; a finished job keeps its configuration.

    Raises:
        InputError: If a job in the folder has started with other settings; nothing is written then.
    """
    jobs = [
        (planned, SweepJob(folder / planned.name, seed), JobConfig.parse(planned.config))
        for planned in plan
        if planned.config is not None
    ]
    # All are checked before the first is written, so that a refused sweep changes nothing.
    for _, job, config in jobs:
        _check_settings(job, config)
    for planned, job, config in jobs:
        if job.state != "done":
            planned.write(folder)
        elif not config.save_checkpoints:
            job.remove_checkpoints()  # a sweep that was killed right after the result did not
    return [job for _, job, _ in jobs]


def _check_settings(job: SweepJob, config: JobConfig) -> None:
    """Refuse settings other than those that a job started with: one table must not mix them, whatever the seed."""
    settings = job.path / "config.yml"
    if not [*job.path.glob("result*.pkl"), *job.path.glob("result*/*.pth")]:
        return
    own_folder(job.path)  # a link to nothing must be refused as a link, not taken for a missing file
    if not settings.exists():
        raise InputError(
            f"'{job.path}' holds a result or checkpoints, but no config.yml that says of what settings; put it back, "
            "choose another -o, or remove the folder"
        )
    if difference := next(JobConfig.load(settings).differences(config), None):
        raise InputError(
            f"'{job.path}' was trained with {difference}; the sweeps in a folder share their settings, so use the "
            "same, choose another -o, or remove the folder"
        )


def run_sweep(jobs: Sequence[SweepJob], cluster: LocalPool | Slurm, *, retry_failed: bool = False) -> None:
    """Run all jobs that have no result; those that failed before are only listed, unless `retry_failed`.

    Raises:
        InputError: If jobs failed, now or earlier, or were killed; each is listed with its reason and its log.
    """
    if retry_failed:
        for job in jobs:
            job.failure.unlink(missing_ok=True)
    states = Counter(job.state for job in jobs)
    _log.info(
        "%d jobs: %d done, %d to run, %d failed before",
        len(jobs), states["done"], states["waiting"], states["failed"],
    )  # fmt: skip
    if states["waiting"]:
        _watch([job for job in jobs if job.state == "waiting"], cluster)
    _list_unfinished(jobs)


def _watch(jobs: Sequence[SweepJob], cluster: LocalPool | Slurm) -> None:
    """Start jobs and wait until all have ended."""
    how = {"done": "done", "failed": "FAILED", "waiting": "INTERRUPTED"}
    # Exit with the status of a terminated program, but stop the jobs first.
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        with closing(cluster.run(jobs)) as ended:
            for number, job in enumerate(ended, 1):
                _log.info("[%d/%d] %s: %s", number, len(jobs), job.path.name, how[job.state])
    finally:
        signal.signal(signal.SIGTERM, before)


def _list_unfinished(jobs: Sequence[SweepJob]) -> None:
    failed, interrupted = ([job for job in jobs if job.state == state] for state in ("failed", "waiting"))
    for job in failed:
        _log.info("failed: %s\n  %s\n  log: %s", job.path.name, job.failure.read_text().strip(), job.log)
    # A killed job wrote no reason, and its own settings need not be the cause, so it may run again.
    for job in interrupted:
        _log.info("interrupted: %s\n  killed, cancelled or out of memory\n  log: %s", job.path.name, job.log)
    if failed:
        raise InputError(
            f"{len(failed)} jobs failed and are listed above with their logs; fix the cause and repeat the command "
            "with --retry-failed"
        )
    if interrupted:
        raise InputError(
            f"{len(interrupted)} jobs were interrupted and are listed above with their logs; repeat the command to "
            "resume them"
        )

"""Running a sweep: finished jobs are skipped, failed ones are listed, and the rest are started and watched."""

from __future__ import annotations

import logging
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stitchkit.assembly.config.job import JobConfig
from stitchkit.assembly.sweep.cluster import Cluster
from stitchkit.assembly.sweep.plan import PlannedJob
from stitchkit.assembly.sweep.worker import JobFolder, remove_checkpoints
from stitchkit.errors import InputError
from stitchkit.files import own_folder

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """The jobs of a sweep that are done, have failed, or are waiting."""

    done: tuple[JobFolder, ...]
    failed: tuple[JobFolder, ...]
    waiting: tuple[JobFolder, ...]


def write_folders(jobs: Sequence[PlannedJob], folder: Path, seed: int | None) -> list[JobFolder]:
    """A folder for every job that applies; a finished job keeps its configuration.

    Raises:
        InputError: If a job in the folder has started with other settings; nothing is written then.
    """
    places = [(job, JobFolder(folder / job.name, seed)) for job in jobs if job.config is not None]
    # All are checked before the first is written, so that a refused sweep changes nothing.
    for job, place in places:
        _check_settings(job, place)
    for job, place in places:
        if place.result.exists():
            # A sweep that was killed right after the result did not remove them.
            remove_checkpoints(place, JobConfig.parse(job.config or {}).save_checkpoints)
        else:
            job.write(folder)
    return [place for _, place in places]


def _check_settings(job: PlannedJob, place: JobFolder) -> None:
    """Refuse settings other than those that a job started with: one table must not mix them."""
    settings = place.path / "config.yml"
    if not place.has_begun():
        return
    own_folder(place.path)  # a link to nothing must be refused as a link, not taken for a missing file
    if not settings.exists():
        raise InputError(
            f"'{place.path}' holds a result or checkpoints, but no config.yml that says of what settings; put it back, "
            "choose another -o, or remove the folder"
        )
    before, now = JobConfig.load(settings), JobConfig.parse(job.config or {})
    if difference := next(before.differences(now), None):
        raise InputError(
            f"'{place.path}' was trained with {difference}; the sweeps in a folder share their settings, so use the "
            "same, choose another -o, or remove the folder"
        )


def progress(folders: Sequence[JobFolder]) -> Progress:
    """The state of a sweep, from the files in its folders."""
    done = tuple(folder for folder in folders if folder.result.exists())
    failed = tuple(folder for folder in folders if folder not in done and folder.failure is not None)
    return Progress(done, failed, tuple(folder for folder in folders if folder not in (*done, *failed)))


def run_sweep(folders: Sequence[JobFolder], cluster: Cluster, *, retry_failed: bool = False, poll_s: float = 2) -> None:
    """Run all jobs that have no result.

    Args:
        folders: The jobs.
        cluster: Where they run.
        retry_failed: Rerun failed jobs; otherwise they are only listed.
        poll_s: Seconds between two polls.

    Raises:
        InputError: If jobs failed, now or earlier, or were killed; each is listed with its reason and its log.
    """
    if retry_failed:
        for folder in progress(folders).failed:
            folder.forget_failure()
    before = progress(folders)
    _log.info(
        "%d jobs: %d done, %d to run, %d failed before",
        *map(len, (folders, before.done, before.waiting, before.failed)),
    )
    if before.waiting:
        _watch(before.waiting, cluster, poll_s)
    _list_unfinished(progress(folders))


def _watch(folders: Sequence[JobFolder], cluster: Cluster, poll_s: float) -> None:
    """Start jobs and wait until all have ended."""
    finished = 0
    before = signal.signal(signal.SIGTERM, _leave)
    try:
        cluster.start(folders)
        while finished < len(folders):
            time.sleep(poll_s)
            for folder in cluster.poll():
                finished += 1
                how = "done" if folder.result.exists() else "FAILED" if folder.failure else "INTERRUPTED"
                _log.info("[%d/%d] %s: %s", finished, len(folders), folder.path.name, how)
    finally:
        cluster.stop()
        signal.signal(signal.SIGTERM, before)


def _leave(number: int, _frame: object) -> None:
    """Exit with the status of a terminated program, but stop the jobs first."""
    sys.exit(128 + number)


def _list_unfinished(after: Progress) -> None:
    for folder in after.failed:
        _log.info("failed: %s\n  %s\n  log: %s", folder.path.name, folder.failure, folder.log)
    # A killed job wrote no reason, and its own settings need not be the cause, so it may run again.
    for folder in after.waiting:
        _log.info("interrupted: %s\n  killed, cancelled or out of memory\n  log: %s", folder.path.name, folder.log)
    if after.failed:
        raise InputError(
            f"{len(after.failed)} jobs failed and are listed above with their logs; fix the cause and repeat the "
            "command with --retry-failed"
        )
    if after.waiting:
        raise InputError(
            f"{len(after.waiting)} jobs were interrupted and are listed above with their logs; repeat the command "
            "to resume them"
        )

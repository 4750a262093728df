"""Running a sweep: what is done stays, what failed is listed, the rest is started and watched to its end."""

from __future__ import annotations

import logging
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stitchkit.assembly.sweep.cluster import Cluster
from stitchkit.assembly.sweep.plan import PlannedJob
from stitchkit.assembly.sweep.worker import JobFolder
from stitchkit.errors import InputError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """Which jobs of a sweep are done, have failed, and are still to run."""

    done: tuple[JobFolder, ...]
    failed: tuple[JobFolder, ...]
    waiting: tuple[JobFolder, ...]


def write_folders(jobs: Sequence[PlannedJob], folder: Path, seed: int | None) -> list[JobFolder]:
    """A folder for every job that applies; the configuration of one that is done is left as it ran."""
    folders = []
    for job in jobs:
        if job.config is None:
            continue
        place = JobFolder(folder / job.name, seed)
        if not place.result.exists():
            job.write(folder)
        folders.append(place)
    return folders


def progress(folders: Sequence[JobFolder]) -> Progress:
    """How far a sweep is, by what lies in its folders."""
    done = tuple(folder for folder in folders if folder.result.exists())
    failed = tuple(folder for folder in folders if folder not in done and folder.failure is not None)
    return Progress(done, failed, tuple(folder for folder in folders if folder not in (*done, *failed)))


def run_sweep(folders: Sequence[JobFolder], cluster: Cluster, *, retry_failed: bool = False, poll_s: float = 2) -> None:
    """Run all jobs that have no result.

    Args:
        folders: The jobs.
        cluster: Where they run.
        retry_failed: Run those again that failed before; otherwise they are only listed.
        poll_s: Seconds between looks at them.

    Raises:
        InputError: If jobs failed, now or before; each is listed with its reason and its log.
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
    _list_failed(progress(folders))


def _watch(folders: Sequence[JobFolder], cluster: Cluster, poll_s: float) -> None:
    """Start jobs and wait until all are over."""
    finished = 0
    before = signal.signal(signal.SIGTERM, _leave)
    try:
        cluster.start(folders)
        while finished < len(folders):
            time.sleep(poll_s)
            for folder in cluster.poll():
                finished += 1
                if not folder.result.exists() and folder.failure is None:
                    folder.fail("it ended without a result; out of memory, killed or cancelled")
                how = "done" if folder.result.exists() else "FAILED"
                _log.info("[%d/%d] %s: %s", finished, len(folders), folder.path.name, how)
    finally:
        cluster.stop()
        signal.signal(signal.SIGTERM, before)


def _leave(number: int, _frame: object) -> None:
    """End as a program does that was terminated, but stop the jobs first."""
    sys.exit(128 + number)


def _list_failed(after: Progress) -> None:
    if not after.failed:
        return
    for folder in after.failed:
        _log.info("failed: %s\n  %s\n  log: %s", folder.path.name, folder.failure, folder.log)
    raise InputError(
        f"{len(after.failed)} jobs failed and are listed above with their logs; mend the cause and give the command "
        "again with --retry-failed"
    )

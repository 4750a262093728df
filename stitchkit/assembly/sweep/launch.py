"""Running a sweep: finished jobs are skipped, failed ones are listed, and the rest are started and watched."""

from __future__ import annotations

import logging
import signal
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn, get_args

import torch

from stitchkit.assembly.config.job import JobConfig
from stitchkit.assembly.config.job_settings import override
from stitchkit.assembly.sweep.cluster import LocalPool, Slurm, arrays, standing
from stitchkit.assembly.sweep.plan import PlannedJob
from stitchkit.assembly.sweep.worker import State, SweepJob
from stitchkit.assembly.train.run import run_job
from stitchkit.display import counted
from stitchkit.distributed import World
from stitchkit.engine.run_log import collected
from stitchkit.errors import InputError, Stopped, one_line
from stitchkit.files import own_folder

_log = logging.getLogger(__name__)


def write_folders(plan: Sequence[PlannedJob], folder: Path, seeds: Sequence[int | None]) -> list[SweepJob]:
    """A folder for every job that applies, which the runs with all seeds share; a finished job keeps its configuration.

    Raises:
        InputError: If a job in the folder has started with other settings; nothing is written then.
    """
    jobs = [
        (planned, SweepJob(folder / planned.name, seed), config)
        for planned in plan
        if planned.config is not None
        for config in [JobConfig.parse(planned.config)]
        for seed in seeds
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
    has_files = any(job.path.glob("result*.pkl")) or any(job.path.glob("result*/*.pth"))
    if not has_files and not job.is_running:  # one that is running may have read its settings already
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
        Stopped: If a signal stops the sweep.
    """
    if left := _left(jobs, retry_failed):
        _watch(left, cluster)
    _list_unfinished(jobs, interrupted=[job for job in jobs if job.state in ("running", "waiting")])


def submit_sweep(jobs: Sequence[SweepJob], slurm: Slurm, *, retry_failed: bool = False) -> None:
    """Submit the jobs that neither have ended nor are in Slurm's queue, without waiting for any.

    Raises:
        InputError: If jobs failed earlier; each is listed with its reason and its log.
    """
    if left := _left(jobs, retry_failed):
        slurm.submit(left)
        _log.info("repeat the command to see how far they are")
    _list_unfinished(jobs)


def _left(jobs: Sequence[SweepJob], retry_failed: bool) -> list[SweepJob]:
    """The jobs that have not ended, after a line that says how many are in which state."""
    if retry_failed:
        for job in jobs:
            job.failure.unlink(missing_ok=True)
    states = standing(jobs)
    _log.info("%s", census(states.values()))
    return [job for job, state in states.items() if state in ("running", "waiting")]


def census(states: Iterable[State]) -> str:
    """States in words: `12 jobs: 7 done, 1 running, 1 failed, 3 waiting`."""
    found = Counter(states)
    return f"{counted(found.total(), 'job')}: {', '.join(f'{found[state]} {state}' for state in get_args(State))}"


def _watch(jobs: Sequence[SweepJob], cluster: LocalPool | Slurm) -> None:
    """Start jobs and wait until all have ended."""
    how = {"done": "done", "failed": "FAILED"}
    # Exit with the status of a terminated program, but stop the jobs first.
    before = signal.signal(signal.SIGTERM, _raise_stopped)
    start = time.monotonic()
    try:
        with closing(cluster.run(jobs)) as ended:
            for number, job in enumerate(ended, 1):
                passed = time.monotonic() - start
                left = passed / number * (len(jobs) - number)
                _log.info(
                    "%d/%d %s: %s; %s so far, about %s left", number, len(jobs),
                    job.path.name, how.get(job.state, "INTERRUPTED"), _duration(passed), _duration(left),
                )  # fmt: skip
    except (Stopped, KeyboardInterrupt) as stop:
        number = stop.number if isinstance(stop, Stopped) else signal.SIGINT
        goes_on = f"jobs go on in Slurm; to cancel them: scancel {arrays(jobs)}"
        how_left = goes_on if isinstance(cluster, Slurm) else "jobs that were running save their state and end"
        raise Stopped(number, how_left) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _raise_stopped(number: int, _: object) -> NoReturn:
    raise Stopped(number, "")


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def smoke(plan: Sequence[PlannedJob]) -> None:
    """Train and test every job that applies for one step in this process, in a folder that is removed.

    Raises:
        InputError: If jobs fail; each is listed with its reason.
    """
    jobs = [job for job in plan if job.config is not None]
    num_failed = 0
    for number, job in enumerate(jobs, 1):
        reason = _first_step(job)
        num_failed += bool(reason)
        _log.info("%d/%d %s: %s", number, len(jobs), job.name, reason or "runs")
    if num_failed:
        raise InputError(
            f"{num_failed} of {counted(len(jobs), 'job')} failed for the reasons above; correct them before the sweep"
        )


def _first_step(job: PlannedJob) -> str:
    """The reason why a job cannot train and test for one step; empty if it can."""
    assert job.config is not None
    content = job.config
    batches = JobConfig.parse(content).train_config.grad_accum_steps
    short = {"epochs": 1, "max_batches": batches, "save_checkpoints": False, "checkpoint_interval": 0, "project": None}
    disabled = logging.root.manager.disable
    try:
        logging.disable(logging.INFO)
        with TemporaryDirectory() as folder:
            run_job(JobConfig.parse(override(content, {**short, "save_dir": folder})))
    except Stopped:
        raise
    except Exception as error:  # torch and the models raise many types
        return f"FAILED, {error if isinstance(error, InputError) else one_line(error)}"
    finally:
        logging.disable(disabled)
    return ""


@contextmanager
def logged() -> Iterator[None]:
    """Collect what a sweep says, for `begin_log`: a sweep that is refused leaves its folder alone."""
    import submitit  # noqa: F401  # importing it configures logging, which closes the handlers that there are

    with collected(World(0, 1, torch.device("cpu"))):
        yield


def _list_unfinished(jobs: Sequence[SweepJob], *, interrupted: Sequence[SweepJob] = ()) -> None:
    failed = [job for job in jobs if job.state == "failed"]
    for job in failed:
        _log.info("failed: %s\n  %s\n  log: %s", job.path.name, job.failure.read_text().strip(), job.log)
    # A killed job wrote no reason, and its own settings need not be the cause, so it may run again.
    for job in interrupted:
        _log.info("interrupted: %s\n  killed, cancelled or out of memory\n  log: %s", job.path.name, job.log)
    if failed:
        raise InputError(
            f"{counted(len(failed), 'job')} failed, listed above with the logs; fix the cause and repeat the command "
            "with --retry-failed"
        )
    if interrupted:
        raise InputError(
            f"{counted(len(interrupted), 'job')} interrupted, listed above with the logs; repeat the command to resume"
        )

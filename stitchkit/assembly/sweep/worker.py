"""One job of a sweep: its folder, its state, and its run in a process of submitit."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from stitchkit.assembly.config.job import JobConfig
from stitchkit.assembly.train.checkpoint import JobCheckpoints
from stitchkit.assembly.train.run import run_job
from stitchkit.display import counted
from stitchkit.engine.lock import is_held
from stitchkit.engine.recovery import AUTO, TRAIN_LOCK
from stitchkit.errors import InputError, Stopped
from stitchkit.files import opened

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

_logger = logging.getLogger(__name__)

State = Literal["done", "running", "failed", "waiting"]
"""The state of a job: jobs that were interrupted wait too."""


@dataclass(frozen=True)
class SweepJob:
    """A run of one job.

    Args:
        seed: The seed of this run. Runs with other seeds share the folder; None stands for the configuration's seed.
    """

    path: Path  # the job's folder, with `config.yml`, `metadata.yml`, its log and the files of each run
    seed: int | None = None

    @property
    def result(self) -> Path:
        """The file that a run writes last, when it is done."""
        return self.path / ("result.pkl" if self.seed is None else f"result-{self.seed}.pkl")

    @property
    def name(self) -> str:
        """Its name in messages."""
        return self.path.name if self.seed is None else f"{self.path.name}, seed {self.seed}"

    @property
    def log(self) -> Path:
        """The output of the job; runs with several seeds may write at the same time, each to its own."""
        return self.path / ("log.txt" if self.seed is None else f"log-{self.seed}.txt")

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints; an interrupted run resumes from them."""
        return self.result.with_suffix("")

    @property
    def submission(self) -> Path:
        """The file with Slurm's number of the run."""
        return self.result.with_suffix(".slurm")

    @property
    def number(self) -> str:
        """Slurm's number of the run; empty if it was not submitted."""
        return self.submission.read_text().strip() if self.submission.is_file() else ""

    @property
    def failure(self) -> Path:
        """The file with the reason why the run failed, which exists if it did."""
        return self.result.with_suffix(".failed")

    @property
    def state(self) -> State:
        """The state of the run, as far as its folder and this machine tell."""
        if self.result.exists():
            return "done"
        return "failed" if self.failure.is_file() else "running" if self.is_running else "waiting"

    @property
    def is_running(self) -> bool:
        """Whether a process runs it now, or is about to, perhaps one that outlived a killed sweep."""
        is_locked = is_held(self.checkpoints / TRAIN_LOCK)
        return is_locked or any(map(_is_alive, self.path.glob(f"submitit/{self.submits}*/*_submitted.pkl")))

    @property
    def submits(self) -> str:
        """The beginning of the names of its folders for submitit; runs with other seeds have others."""
        return f"{self.result.stem}."

    def fail(self, reason: str) -> None:
        """Record that the run failed; it is not restarted until the user asks for it."""
        # The first reason is kept: the other ranks fail because of the first, and know less.
        with contextlib.suppress(FileExistsError), opened(self.failure, "x") as file:
            file.write(reason + "\n")

    def remove_checkpoints(self) -> None:
        """Remove the checkpoints of a finished run."""
        shutil.rmtree(self.checkpoints, ignore_errors=True)

    def __call__(self) -> None:
        """Run the job to its end in this process of submitit, which is one rank of it."""
        from submitit import JobEnvironment
        from submitit.helpers import TorchDistributedEnvironment

        if self.result.exists():
            return
        environment = JobEnvironment()
        is_primary = environment.global_rank == 0
        _write_to(self.log, logging.INFO if is_primary else logging.ERROR)
        if environment.num_tasks > 1:
            # Each rank sees all GPUs of the job and uses the one with its number.
            TorchDistributedEnvironment().export(set_cuda_visible_devices=False)
        _handle_signals(is_local=environment.cluster == "local")
        try:
            self._run(is_primary)
        except Stopped as stop:  # by the user; the job resumes when the sweep is repeated
            _logger.info("stopped by a signal; %s", stop)
            sys.exit(128 + stop.number)
        except Exception as error:
            # A job that outlived its sweep may hold the folder; the sweep waits for it, so this is not a failure.
            if not is_held(self.checkpoints / TRAIN_LOCK):
                self.fail(str(error) or type(error).__name__)
            if isinstance(error, InputError):
                _logger.error("stitchkit: error: %s", error)
            raise

    def checkpoint(self) -> DelayedSubmission:
        """What submitit starts after a preemption: this job, which resumes from its newest checkpoint."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def _run(self, is_primary: bool) -> None:
        settings = self.path / "config.yml"
        keep = JobConfig.load(settings).save_checkpoints
        # An interrupted job resumes from checkpoints, even if the user does not want to keep them.
        changes: dict[str, object] = {"save_dir": str(self.checkpoints), "metrics_output": str(self.result)}
        if self.seed is not None:
            changes["seed"] = self.seed  # a sweep of another seed may have rewritten the file since
        # Only with a checkpoint, because resume_from would override the file's load_from.
        if JobCheckpoints(self.checkpoints).candidates():
            changes["resume_from"] = AUTO
        run_job(JobConfig.load(settings, save_checkpoints=True, **changes), settings)
        # Only the first rank saves, and others may finish earlier.
        if is_primary and not keep:
            self.remove_checkpoints()


def _is_alive(submitted: Path) -> bool:
    """Whether the process that submitit wrote this file for lives on this machine.

    It takes the job's lock only once torch is loaded, which takes seconds.
    """
    number = submitted.name.partition("_")[0]
    try:
        command = Path(f"/proc/{number}/cmdline").read_bytes()
    except OSError:  # it ended, or the system has no such files, and only the lock tells
        return False
    return os.fsencode(submitted.parent.name) in command  # the number may be another process's by now


def _write_to(log: Path, level: int) -> None:
    """Append everything that this process prints from now on to a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    with opened(log, "a") as file:
        # Redirect the descriptors, not Python's streams, because libraries in C print too.
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stdout, force=True)


def _handle_signals(*, is_local: bool) -> None:
    """Let a stopped sweep end the job, and a preemption requeue it once."""
    # submitit ignores SIGTERM, because Slurm sends it before it preempts; a pool sends it to stop the job.
    if is_local:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # Loader processes inherit submitit's handler of a preemption, and would requeue the job again.
    own, answer = os.getpid(), signal.getsignal(signal.SIGUSR2)
    if callable(answer):
        signal.signal(signal.SIGUSR2, lambda number, frame: answer(number, frame) if os.getpid() == own else None)


def counts(each: Iterable[State]) -> str:
    """The number of jobs in each state: `12 jobs: 7 done, 1 running, 1 failed, 3 waiting`."""
    by_state = Counter(each)
    numbers = ", ".join(f"{by_state[state]} {state}" for state in get_args(State))
    return f"{counted(by_state.total(), 'job')}: {numbers}"

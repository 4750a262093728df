"""One job of a sweep: its folder, its state, and its run in a process of submitit."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stitchkit.engine.lock import is_held
from stitchkit.errors import InputError, Stopped
from stitchkit.files import opened

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class JobFolder:
    """The folder of one job: `config.yml`, `metadata.yml`, its log, and the files of each of its runs.

    Args:
        path: The folder.
        seed: The seed of this run. Runs with other seeds share the folder; None stands for the configuration's seed.
    """

    path: Path
    seed: int | None = None

    @property
    def result(self) -> Path:
        """The file that a run writes last, when it is done."""
        return self.path / ("result.pkl" if self.seed is None else f"result-{self.seed}.pkl")

    @property
    def log(self) -> Path:
        """The output of the job, over all its runs."""
        return self.path / "log.txt"

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints, from which an interrupted run resumes."""
        return self.result.with_suffix("")

    @property
    def submission(self) -> Path:
        """The file with Slurm's number of the run."""
        return self.result.with_suffix(".slurm")

    @property
    def number(self) -> str:
        """Slurm's number of the run; empty if it was not submitted."""
        return self.submission.read_text().strip() if self.submission.exists() else ""

    @property
    def failure(self) -> str | None:
        """The reason why the run failed; None if it did not."""
        return self._failed.read_text().strip() if self._failed.exists() else None

    @property
    def _failed(self) -> Path:
        return self.result.with_suffix(".failed")

    @property
    def is_over(self) -> bool:
        """Whether the run has a result or has failed; an interrupted run is not over."""
        return self.result.exists() or self.failure is not None

    @property
    def is_running(self) -> bool:
        """Whether a process runs it now, perhaps one that outlived a killed sweep."""
        return is_held(self.checkpoints / ".train.lock")

    def has_begun(self) -> bool:
        """Whether a run of any seed has left files that must not be mixed with those of other settings."""
        return any(True for pattern in ("result*.pkl", "result*/*.pth") for _ in self.path.glob(pattern))

    def fail(self, reason: str) -> None:
        """Record that the run failed; it is not restarted until the user asks for it."""
        # The first reason is kept: the other ranks fail because of the first, and know less.
        with contextlib.suppress(FileExistsError), opened(self._failed, "x") as file:
            file.write(reason + "\n")

    def forget_failure(self) -> None:
        """Let the run start again."""
        self._failed.unlink(missing_ok=True)


class SweepJob:
    """A job for submitit; after a preemption it restarts and resumes from its newest checkpoint.

    Args:
        folder: The folder of the job.
    """

    def __init__(self, folder: JobFolder):
        self.folder = folder

    def __call__(self) -> None:
        """Run the job to its end in this process, which is one rank of it.

        Raises:
            InputError: If the job cannot run as configured; its log says why.
        """
        if self.folder.result.exists():
            return
        _write_to(self.folder.log)
        _join_ranks()
        _handle_preemption_here_alone()
        try:
            self._run()
        except Stopped:  # by the user; the job resumes when the sweep is repeated
            raise
        except Exception as error:
            # A job that outlived its sweep may hold the folder; the sweep waits for it, so this is not a failure.
            if not self.folder.is_running:
                self.folder.fail(str(error) or type(error).__name__)
            if isinstance(error, InputError):
                _logger.error("stitchkit: error: %s", error)
            raise

    def checkpoint(self) -> DelayedSubmission:
        """The job that submitit starts after a preemption: this one."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(SweepJob(self.folder))

    def _run(self) -> None:
        from stitchkit.assembly.config.job import JobConfig
        from stitchkit.assembly.train.checkpoint import JobCheckpoints
        from stitchkit.assembly.train.run import run_job
        from stitchkit.engine.recovery import AUTO

        folder, settings = self.folder, self.folder.path / "config.yml"
        wanted = JobConfig.load(settings)
        # An interrupted job resumes from checkpoints, even if the user does not want to keep them.
        changes: dict[str, object] = {
            "save_checkpoints": True, "save_dir": str(folder.checkpoints), "metrics_output": str(folder.result)
        }  # fmt: skip
        if folder.seed is not None:
            changes["seed"] = folder.seed  # a sweep of another seed may have rewritten the file since
        # Only with a checkpoint, because resume_from would override the file's load_from.
        if JobCheckpoints(folder.checkpoints).candidates():
            changes["resume_from"] = AUTO
        run_job(wanted.override(**changes), settings)
        # Only the first rank saves, and others may finish earlier.
        if _is_primary():
            remove_checkpoints(folder, wanted.save_checkpoints)


def remove_checkpoints(folder: JobFolder, are_wanted: bool) -> None:
    """Remove the checkpoints of a finished job, unless the user wants to keep them."""
    if not are_wanted:
        shutil.rmtree(folder.checkpoints, ignore_errors=True)


def _is_primary() -> bool:
    from submitit import JobEnvironment

    return bool(JobEnvironment().global_rank == 0)


def _write_to(log: Path) -> None:
    """Append everything that this process prints from now on to a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    with opened(log, "a") as file:
        # Redirect the descriptors, not Python's streams, because libraries in C print too.
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    level = logging.INFO if _is_primary() else logging.ERROR
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stdout, force=True)


def _join_ranks() -> None:
    """Tell torch about the other ranks of this job, if there are any."""
    from submitit import JobEnvironment
    from submitit.helpers import TorchDistributedEnvironment

    if JobEnvironment().num_tasks > 1:
        # Each rank sees all GPUs of the job and uses the one with its number.
        TorchDistributedEnvironment().export(set_cuda_visible_devices=False)


def _handle_preemption_here_alone() -> None:
    """Keep loader processes, which inherit submitit's signal handler, from requeueing the job again."""
    here, answer = os.getpid(), signal.getsignal(signal.SIGUSR2)
    if callable(answer):
        signal.signal(signal.SIGUSR2, lambda number, frame: answer(number, frame) if os.getpid() == here else None)

"""One job of a sweep: its folder, what state it is in, and how it runs wherever submitit puts it."""

from __future__ import annotations

import logging
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stitchkit.errors import InputError

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class JobFolder:
    """The folder of one job: `config.yml`, `metadata.yml`, then its log, its result or its failure.

    Args:
        path: The folder.
        result_name: Name of the result file, which carries the seed.
    """

    path: Path
    result_name: str

    @property
    def result(self) -> Path:
        """The file that a job writes last; a job that has it is done."""
        return self.path / self.result_name

    @property
    def log(self) -> Path:
        """What the job said, over all its starts."""
        return self.path / "log.txt"

    @property
    def submission(self) -> Path:
        """Where the job was sent to."""
        return self.path / "submission.yml"

    @property
    def failure(self) -> str | None:
        """Why the job failed; None where it did not."""
        return self._failed.read_text().strip() if self._failed.exists() else None

    @property
    def _failed(self) -> Path:
        return self.path / "failed.txt"

    def fail(self, reason: str) -> None:
        """Note that the job failed; it does not run again until a person asks for it."""
        self._failed.write_text(reason + "\n")

    def forget_failure(self) -> None:
        """Let the job run again."""
        self._failed.unlink(missing_ok=True)


class SweepJob:
    """A job as submitit runs it; preempted, it is started again and goes on from its last finished epoch.

    Args:
        folder: Its folder.
    """

    def __init__(self, folder: JobFolder):
        self.folder = folder

    def __call__(self) -> None:
        """Run it to its end, in this process; under several tasks each is a rank.

        Raises:
            InputError: If the job cannot run as its configuration asks; its log says why.
        """
        if self.folder.result.exists():
            return
        _write_to(self.folder.log)
        _join_ranks()
        _handle_preemption_here_alone()
        try:
            self._run()
        except Exception as error:
            self.folder.fail(str(error) or type(error).__name__)
            if isinstance(error, InputError):
                _logger.error("stitchkit: error: %s", error)
            raise

    def checkpoint(self) -> Any:
        """What submitit starts after a preemption: the same again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(SweepJob(self.folder))

    def _run(self) -> None:
        from assembly.config.job import JobConfig
        from assembly.train.checkpoint import NEWEST
        from assembly.train.run import run_job

        place, settings = self.folder.path, self.folder.path / "config.yml"
        wanted = JobConfig.load(settings)
        changes: dict[str, Any] = {"save_dir": str(place), "metrics_output": str(self.folder.result)}
        if (place / NEWEST).exists():
            changes["resume_from"] = str(place / NEWEST)
        # Checkpoints are what a preempted job goes on from, whether or not a person wants to keep them.
        run_job(wanted.override(save_checkpoints=True, **changes), settings)
        if not wanted.save_checkpoints:
            for checkpoint in (place / NEWEST, *place.glob("model-*.pth")):
                checkpoint.unlink(missing_ok=True)


def _write_to(log: Path) -> None:
    """Let this process write into a file from now on, below what earlier starts wrote."""
    from submitit import JobEnvironment

    sys.stdout.flush()
    sys.stderr.flush()
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    is_primary = JobEnvironment().global_rank == 0
    level = logging.INFO if is_primary else logging.ERROR
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stdout, force=True)


def _join_ranks() -> None:
    """Tell torch of the other tasks of this job, where there are some."""
    from submitit import JobEnvironment
    from submitit.helpers import TorchDistributedEnvironment

    if JobEnvironment().num_tasks > 1:
        # Each rank sees all GPUs of the job and takes the one of its number.
        TorchDistributedEnvironment().export(set_cuda_visible_devices=False)


def _handle_preemption_here_alone() -> None:
    """Keep loader processes, which inherit how submitit answers signals, from sending the job to the queue again."""
    here, answer = os.getpid(), signal.getsignal(signal.SIGUSR2)
    if callable(answer):
        signal.signal(signal.SIGUSR2, lambda number, frame: answer(number, frame) if os.getpid() == here else None)

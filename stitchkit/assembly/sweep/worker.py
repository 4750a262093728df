"""One job of a sweep: its folder, what state it is in, and how it runs wherever submitit puts it."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stitchkit.errors import InputError, Stopped
from stitchkit.files import opened

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class JobFolder:
    """The folder of one job: `config.yml`, `metadata.yml`, its log, and under the name of its result all else.

    Args:
        path: The folder.
        seed: Of this run of the job, another seed being another run in the same folder; None is the configuration's.
    """

    path: Path
    seed: int | None = None

    @property
    def result(self) -> Path:
        """The file that a run writes last; a run that has it is done."""
        return self.path / ("result.pkl" if self.seed is None else f"result-{self.seed}.pkl")

    @property
    def log(self) -> Path:
        """What the job said, over all its starts."""
        return self.path / "log.txt"

    @property
    def checkpoints(self) -> Path:
        """The folder of what a preempted run goes on from."""
        return self.result.with_suffix("")

    @property
    def submission(self) -> Path:
        """The number that Slurm gave the run."""
        return self.result.with_suffix(".slurm")

    @property
    def failure(self) -> str | None:
        """Why the run failed; None where it did not."""
        return self._failed.read_text().strip() if self._failed.exists() else None

    @property
    def _failed(self) -> Path:
        return self.result.with_suffix(".failed")

    def fail(self, reason: str) -> None:
        """Note that the run failed; it is not started again until a person asks for it.

        What was noted first stays: of several ranks, the others fail because one did.
        """
        with contextlib.suppress(FileExistsError), opened(self._failed, "x") as file:
            file.write(reason + "\n")

    def forget_failure(self) -> None:
        """Let the run start again."""
        self._failed.unlink(missing_ok=True)


class SweepJob:
    """A job as submitit runs it; preempted, it is started again and resumes from its newest checkpoint.

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
        except Stopped:  # by a person; the job resumes when the sweep is run again
            raise
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
        from stitchkit.assembly.config.job import JobConfig
        from stitchkit.assembly.train.checkpoint import JobCheckpoints
        from stitchkit.assembly.train.run import run_job
        from stitchkit.engine.recovery import AUTO

        folder, settings = self.folder, self.folder.path / "config.yml"
        wanted = JobConfig.load(settings)
        changes: dict[str, Any] = {"save_dir": str(folder.checkpoints), "metrics_output": str(folder.result)}
        if folder.seed is not None:
            changes["seed"] = folder.seed  # the file may have been written anew for another
        if JobCheckpoints(folder.checkpoints).candidates():
            changes["resume_from"] = AUTO
        # Checkpoints are what a preempted job goes on from, whether or not a person wants to keep them.
        run_job(wanted.override(save_checkpoints=True, **changes), settings)
        # The first rank alone saves; another may be done before it is.
        if _is_primary() and not wanted.save_checkpoints:
            shutil.rmtree(folder.checkpoints, ignore_errors=True)


def _is_primary() -> bool:
    """Whether this process is the first rank of its job."""
    from submitit import JobEnvironment

    return bool(JobEnvironment().global_rank == 0)


def _write_to(log: Path) -> None:
    """Let this process write into a file from now on, below what earlier starts wrote."""
    sys.stdout.flush()
    sys.stderr.flush()
    with opened(log, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    level = logging.INFO if _is_primary() else logging.ERROR
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

"""The place where the jobs of a sweep run: a pool of processes on this machine, or Slurm, both through submitit."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stitchkit.assembly.sweep.worker import SweepJob
from stitchkit.errors import InputError
from stitchkit.files import refuse_link, write_text
from stitchkit.optional import check_installed

if TYPE_CHECKING:
    from submitit import LocalJob

_logger = logging.getLogger(__name__)

_POLL_S = 2
_NO_LIMIT = 60 * 24 * 365
"""More minutes and more preemptions than any job has; submitit needs a number for both."""


@dataclass
class _Slot:
    """The place of one job at a time; without a process, it may be running in one that an earlier sweep started."""

    job: SweepJob | None = None
    process: LocalJob | None = None

    @property
    def has_ended(self) -> bool:
        if self.job is None or self.job.is_running:
            return False
        return self.process.done() if self.process else self.job.state != "waiting"

    @property
    def needs_start(self) -> bool:
        return not (self.job is None or self.process or self.job.is_running) and self.job.state == "waiting"


@dataclass(frozen=True)
class LocalPool:
    """Jobs on this machine, each in its own process.

    Args:
        limit: Number of jobs at a time.
        gpus: Numbers of the GPUs of this machine; jobs share them if there are too few.
        num_gpus: GPUs per job.
    """

    limit: int
    gpus: Sequence[int] = ()
    num_gpus: int = 0

    def run(self, jobs: Sequence[SweepJob]) -> Generator[SweepJob, None, None]:
        """Run jobs, and yield each when it has ended, with or without a result.

        If the generator is closed before, the jobs that are running save their state and end.
        """
        waiting = list(jobs)
        slots = [_Slot() for _ in range(self.limit)]
        try:
            while True:
                for number, slot in enumerate(slots):
                    if slot.job and slot.has_ended:
                        yield slot.job
                        slot.job = slot.process = None
                    if waiting and slot.job is None:
                        slot.job = waiting.pop(0)
                    # Jobs outlive a killed sweep, and keep their slots and GPUs until they end; one that is killed too
                    # starts again here.
                    if slot.job and slot.needs_start:
                        slot.process = self._submit(slot.job, number)
                if not any(slot.job for slot in slots):
                    return
                time.sleep(_POLL_S)
        finally:
            for process in [slot.process for slot in slots]:
                if process and not process.done():
                    os.kill(int(process.job_id), signal.SIGTERM)  # submitit passes it on to the ranks

    def _submit(self, job: SweepJob, slot: int) -> LocalJob:
        import submitit
        from submitit.helpers import environment_variables

        executor = submitit.LocalExecutor(_new_folder(job.path / "submitit"))
        first = slot * self.num_gpus
        chosen = [self.gpus[number % len(self.gpus)] for number in range(first, first + self.num_gpus)]
        executor.update_parameters(
            timeout_min=_NO_LIMIT,
            tasks_per_node=max(1, self.num_gpus),
            gpus_per_node=self.num_gpus,
            visible_gpus=chosen,
            stderr_to_stdout=True,
        )
        # By default torch uses all cores in each job, so that the jobs would slow each other down.
        threads = str(max(1, (os.cpu_count() or 1) // self.limit))
        # Ctrl-C reaches all processes of a terminal. submitit's would print tracebacks, and kill the job before it has
        # saved its state; started like this, they ignore it.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            with environment_variables(OMP_NUM_THREADS=os.environ.get("OMP_NUM_THREADS", threads)):
                return executor.submit(job)
        finally:
            signal.signal(signal.SIGINT, before)


@dataclass(frozen=True)
class Slurm:
    """One job array on a Slurm cluster. Its jobs survive this process; the next one finds them in the queue.

    Args:
        folder: Folder for submitit's files, visible to all nodes.
        parameters: Options that submitit passes to Slurm, e.g. `partition`.
    """

    folder: Path
    parameters: Mapping[str, object]

    def run(self, jobs: Sequence[SweepJob]) -> Generator[SweepJob, None, None]:
        """Submit the jobs that are not in the queue already, and yield each when it has ended."""
        queue = _queue()
        watched = {number: job for job in jobs if (number := job.number) in queue}
        fresh = [job for job in jobs if job not in watched.values()]
        for job, number in zip(fresh, self._submit(fresh) if fresh else (), strict=True):
            write_text(job.submission, number)
            watched[number] = job
        missed: set[str] = set()
        while watched:
            time.sleep(_POLL_S)
            try:
                gone = set(watched) - _queue()
            except InputError as error:  # its daemon may be restarting while the jobs run
                _logger.warning("%s", error)
                continue
            for number, job in list(watched.items()):
                # On a shared file system, a result may appear after the end of its job, so look twice.
                if number in gone and (job.state != "waiting" or number in missed):
                    yield watched.pop(number)
            missed = gone

    def _submit(self, jobs: Sequence[SweepJob]) -> list[str]:
        import submitit

        try:
            # A job whose time is up is requeued and resumes.
            executor = submitit.SlurmExecutor(_new_folder(self.folder), max_num_timeout=_NO_LIMIT)
            executor.update_parameters(stderr_to_stdout=True, **self.parameters)
            with executor.batch():
                submitted = [executor.submit(job) for job in jobs]
        except (RuntimeError, submitit.core.utils.FailedJobError) as error:
            raise InputError(f"Slurm does not accept the jobs: {str(error).strip()}") from error
        return [job.job_id for job in submitted]


def create_cluster(
    name: str,
    *,
    folder: Path,
    jobs: int | None = None,
    gpus: int | None = None,
    partition: str | None = None,
    cpus: int | None = None,
    mem_gb: float | None = None,
    hours: float = 24,
    sbatch: Sequence[str] = (),
) -> LocalPool | Slurm:
    """The place, `local` or `slurm`, where the jobs of the sweep in a folder run, by the flags of `stitchkit sweep`."""
    if (jobs is not None and jobs < 1) or (gpus or 0) < 0:
        raise InputError(f"--jobs is {jobs} and --gpus {gpus}; they must be at least 1 and 0")
    check_installed(["submitit"], "jobs", "a sweep")
    if name == "local":
        for flag, value in (("--partition", partition), ("--cpus", cpus), ("--mem-gb", mem_gb), ("--sbatch", sbatch)):
            if value:
                raise InputError(f"{flag} is for Slurm; add --cluster slurm, or omit it")
        found = _gpus()
        if (gpus or 0) > len(found):
            raise InputError(f"--gpus is {gpus}, but this machine has {len(found)}")
        return LocalPool(jobs or 1, found, min(1, len(found)) if gpus is None else gpus)
    # submitit expects true for options without a value, such as `exclusive`.
    further = {key: value or True for key, _, value in (option.partition("=") for option in sbatch)}
    ranks = 1 if gpus is None else gpus
    parameters = {
        "job_name": "stitchkit",
        "partition": partition,
        "time": max(1, round(hours * 60)),
        "ntasks_per_node": max(1, ranks),
        "gpus_per_node": ranks or None,
        "cpus_per_task": cpus,
        "srun_args": None if cpus is None else [f"--cpus-per-task={cpus}"],  # srun ignores the option of sbatch
        "array_parallelism": jobs,
        "mem": None if mem_gb is None else f"{round(1024 * mem_gb)}MB",
        # Slurm requeues preempted jobs only if they allow it, which is not the default everywhere.
        "additional_parameters": {"requeue": True, **further},
    }
    return Slurm(folder / "submitit", {key: value for key, value in parameters.items() if value is not None})


def _new_folder(place: Path) -> Path:
    """A new folder for the files of submitit, which follows links and names files by process numbers, which recur."""
    refuse_link(place)
    place.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(dir=place))


def _queue() -> set[str]:
    """Numbers of this user's jobs in Slurm's queue, with one for each element of an array."""
    # Not sacct, which submitit uses: it needs an accounting database, which not every cluster has.
    command = ["squeue", "--noheader", "--array", "--me", "--format=%i"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except FileNotFoundError as error:
        raise InputError(
            "there is no Slurm on this machine; use --cluster local, or a machine of the cluster"
        ) from error
    except subprocess.CalledProcessError as error:
        raise InputError(f"Slurm does not answer: {error.stderr.strip()}") from error
    return set(output.split())


def _gpus() -> list[int]:
    """Numbers of the GPUs that this process may use."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return list(range(torch.cuda.device_count()))
    try:
        return [int(name) for name in visible.split(",") if name]
    except ValueError as error:
        raise InputError(f"CUDA_VISIBLE_DEVICES is '{visible}'; name GPUs by their numbers") from error

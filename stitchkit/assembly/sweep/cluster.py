"""The place where the jobs of a sweep run: a pool of processes on this machine, or Slurm, both through submitit."""

from __future__ import annotations

import logging
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Protocol

from stitchkit.assembly.sweep.worker import JobFolder, SweepJob
from stitchkit.errors import InputError
from stitchkit.files import refuse_link, write_text
from stitchkit.optional import optional

_logger = logging.getLogger(__name__)

_NO_LIMIT = 60 * 24 * 365
"""More minutes and more preemptions than any job has; submitit needs a number for both."""


class Cluster(Protocol):
    """The place where the jobs of a sweep run."""

    def start(self, folders: Sequence[JobFolder]) -> None:
        """Accept jobs, and run as many at a time as there is room for."""

    def poll(self) -> list[JobFolder]:
        """Jobs that ended since the last call, with or without a result."""

    def stop(self) -> None:
        """Stop watching. Jobs of this process end; those of a cluster keep running."""


class _Process(Protocol):
    """The part of submitit's jobs that we use; submitit has no types."""

    def done(self) -> bool: ...

    def cancel(self) -> None: ...


@dataclass
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
    _waiting: list[JobFolder] = field(default_factory=list)
    _running: dict[int, tuple[JobFolder, _Process | None]] = field(default_factory=dict)

    def start(self, folders: Sequence[JobFolder]) -> None:
        """Accept jobs, and start the first of them."""
        self._waiting += folders
        self._fill()

    def poll(self) -> list[JobFolder]:
        """Jobs that have ended; waiting ones start in their place."""
        over = []
        for slot, (folder, job) in list(self._running.items()):
            if folder.is_running or (job is not None and not job.done()):
                continue
            if job is None and not folder.is_over:  # the process that we waited for was killed, so run the job here
                self._running[slot] = folder, self._submit(folder, slot)
            else:
                over.append(self._running.pop(slot)[0])
        self._fill()
        return over

    def stop(self) -> None:
        """End the jobs of this pool; when restarted, each resumes from its newest checkpoint."""
        for _, job in self._running.values():
            if job is not None:
                job.cancel()

    def _fill(self) -> None:
        for slot in range(self.limit):
            if self._waiting and slot not in self._running:
                folder = self._waiting.pop(0)
                # Jobs outlive a killed sweep, and keep their slots and GPUs until they end.
                self._running[slot] = folder, None if folder.is_running else self._submit(folder, slot)

    def _submit(self, folder: JobFolder, slot: int) -> _Process:
        submitit = import_submitit()
        from submitit.helpers import environment_variables

        executor = submitit.LocalExecutor(_new_folder(folder.path / "submitit"))
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
        with environment_variables(OMP_NUM_THREADS=os.environ.get("OMP_NUM_THREADS", threads)):
            process: _Process = executor.submit(SweepJob(folder))
        return process


@dataclass
class Slurm:
    """One job array on a Slurm cluster. Its jobs survive this process; the next one finds them in the queue.

    Args:
        folder: Folder for submitit's files, visible to all nodes.
        parameters: Options that submitit passes to Slurm, e.g. `partition`.
    """

    folder: Path
    parameters: Mapping[str, object]
    _watched: dict[str, JobFolder] = field(default_factory=dict)
    _missed: set[str] = field(default_factory=set)

    def start(self, folders: Sequence[JobFolder]) -> None:
        """Submit the jobs that are not in the queue already, and watch all."""
        queue = _queue()
        self._watched |= {number: folder for folder in folders if (number := folder.number) in queue}
        fresh = [folder for folder in folders if folder.number not in queue]
        for folder, number in zip(fresh, self._submit(fresh) if fresh else (), strict=True):
            write_text(folder.submission, number)
            self._watched[number] = folder

    def poll(self) -> list[JobFolder]:
        """Jobs with a result or a failure, and those that Slurm has dropped."""
        try:
            gone = set(self._watched) - _queue()
        except InputError as error:  # its daemon may be restarting while the jobs run
            _logger.warning("%s", error)
            return []
        # On a shared file system, a result may appear after the end of its job, so look twice.
        dropped, self._missed = gone & self._missed, gone
        over = [
            number
            for number, folder in self._watched.items()
            if number in dropped or (number in gone and (folder.result.exists() or folder.failure))
        ]
        return [self._watched.pop(number) for number in over]

    def stop(self) -> None:
        """Leave the jobs in the queue."""

    def _submit(self, folders: Sequence[JobFolder]) -> list[str]:
        submitit = import_submitit()
        try:
            # A job whose time is up is requeued and resumes.
            executor = submitit.SlurmExecutor(_new_folder(self.folder), max_num_timeout=_NO_LIMIT)
            executor.update_parameters(stderr_to_stdout=True, **self.parameters)
            with executor.batch():
                jobs = [executor.submit(SweepJob(folder)) for folder in folders]
        except (RuntimeError, submitit.core.utils.FailedJobError) as error:
            raise InputError(f"Slurm does not accept the jobs: {str(error).strip()}") from error
        return [job.job_id for job in jobs]


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
) -> Cluster:
    """The place where the jobs of a sweep run.

    Args:
        name: `local` or `slurm`.
        folder: Folder of the sweep.
        jobs: Number of jobs at a time; by default one, or with Slurm as many as it has room for.
        gpus: GPUs per job, one for each rank; by default one, or none on a machine without GPUs.
        partition: Slurm's partition.
        cpus: CPUs per rank.
        mem_gb: Memory per job.
        hours: Time after which Slurm stops and requeues a job.
        sbatch: Further options, `key=value`.
    """
    if (jobs is not None and jobs < 1) or (gpus or 0) < 0:
        raise InputError(f"--jobs is {jobs} and --gpus {gpus}; they must be at least 1 and 0")
    if name == "local":
        for flag, value in (("--partition", partition), ("--cpus", cpus), ("--mem-gb", mem_gb), ("--sbatch", sbatch)):
            if value:
                raise InputError(f"{flag} is for Slurm; add --cluster slurm, or omit it")
        import_submitit()
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


def import_submitit() -> ModuleType:
    """The library that runs jobs."""
    return optional("submitit", "jobs", "a sweep")


def _new_folder(place: Path) -> Path:
    """A new folder in `place` for the files of submitit.

    submitit follows links, and names its files after process numbers, which may recur.
    """
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

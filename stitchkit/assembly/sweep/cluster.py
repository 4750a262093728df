"""Where the jobs of a sweep run: a pool of processes on this machine, or Slurm. Both through submitit."""

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

_logger = logging.getLogger(__name__)

_NO_LIMIT = 60 * 24 * 365
"""More minutes than a job takes, and more preemptions than it meets; submitit wants a number for both."""


class Cluster(Protocol):
    """What a sweep asks of the place where its jobs run."""

    def start(self, folders: Sequence[JobFolder]) -> None:
        """Take jobs; as many run at once as there is room for."""

    def poll(self) -> list[JobFolder]:
        """Jobs that have ended since the last call, with a result or without."""

    def stop(self) -> None:
        """Stop watching. Jobs that only live with this process end; the others keep running."""


class _Process(Protocol):
    """What is used of submitit's jobs, which have no types."""

    def done(self) -> bool: ...

    def cancel(self) -> None: ...


@dataclass
class LocalPool:
    """Jobs on this machine, each a process of its own.

    Args:
        limit: How many run at once.
        gpus: Numbers of the GPUs of this machine; jobs share them where there are fewer than they want.
        num_gpus: GPUs of each job.
    """

    limit: int
    gpus: Sequence[int] = ()
    num_gpus: int = 0
    _waiting: list[JobFolder] = field(default_factory=list)
    _running: dict[int, tuple[JobFolder, _Process | None]] = field(default_factory=dict)

    def start(self, folders: Sequence[JobFolder]) -> None:
        """Take jobs, and start the first of them."""
        self._waiting += folders
        self._fill()

    def poll(self) -> list[JobFolder]:
        """Jobs that have ended; others start in their place."""
        over = []
        for slot, (folder, job) in list(self._running.items()):
            if folder.is_running or (job is not None and not job.done()):
                continue
            if job is None and not folder.is_over:  # what we waited for was killed; now it is ours
                self._running[slot] = folder, self._submit(folder, slot)
            else:
                over.append(self._running.pop(slot)[0])
        self._fill()
        return over

    def stop(self) -> None:
        """End the jobs of this pool; each resumes from its newest checkpoint when it is started again."""
        for _, job in self._running.values():
            if job is not None:
                job.cancel()

    def _fill(self) -> None:
        for slot in range(self.limit):
            if self._waiting and slot not in self._running:
                folder = self._waiting.pop(0)
                # Jobs outlive a sweep that is killed. They keep their slot and its GPUs until they end.
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
        # Torch would take all cores for each job, and the jobs would wait for each other.
        threads = str(max(1, (os.cpu_count() or 1) // self.limit))
        with environment_variables(OMP_NUM_THREADS=os.environ.get("OMP_NUM_THREADS", threads)):
            process: _Process = executor.submit(SweepJob(folder))
        return process


@dataclass
class Slurm:
    """One job array on a Slurm cluster. Its jobs survive this process; the next one finds them in the queue.

    Args:
        folder: Where submitit keeps its files; all nodes see it.
        parameters: Options that submitit passes to Slurm, e.g. `partition`.
    """

    folder: Path
    parameters: Mapping[str, object]
    _watched: dict[str, JobFolder] = field(default_factory=dict)
    _missed: set[str] = field(default_factory=set)

    def start(self, folders: Sequence[JobFolder]) -> None:
        """Submit the jobs that are not in the queue already, and watch all."""
        queue = _queue()
        known = {folder: _submission(folder) for folder in folders}
        self._watched |= {number: folder for folder, number in known.items() if number in queue}
        fresh = [folder for folder, number in known.items() if number not in queue]
        for folder, number in zip(fresh, self._submit(fresh) if fresh else (), strict=True):
            write_text(folder.submission, number)
            self._watched[number] = folder

    def poll(self) -> list[JobFolder]:
        """Jobs with a result or a failure, and those that Slurm has dropped."""
        try:
            gone = set(self._watched) - _queue()
        except InputError as error:  # its daemon may be restarting, and the jobs run meanwhile
            _logger.warning("%s", error)
            return []
        # On a shared file system a result can be seen later than the end of its job, so look twice.
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
            raise InputError(f"Slurm does not take the jobs: {str(error).strip()}") from error
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
        folder: Of the sweep.
        jobs: How many run at once; by default one, or on Slurm as many as it has room for.
        gpus: GPUs of each job, one for each rank; by default one, or none on a machine without.
        partition: Slurm's partition.
        cpus: CPUs of each rank.
        mem_gb: Memory of a job.
        hours: Time after which Slurm ends a job and puts it back into the queue.
        sbatch: Further options, `key=value`.

    Raises:
        InputError: If a value has no meaning there.
    """
    if (jobs is not None and jobs < 1) or (gpus or 0) < 0:
        raise InputError(f"--jobs is {jobs} and --gpus {gpus}; at least one job runs at once, on no fewer than 0 GPUs")
    if name == "local":
        for flag, value in (("--partition", partition), ("--cpus", cpus), ("--mem-gb", mem_gb), ("--sbatch", sbatch)):
            if value:
                raise InputError(f"{flag} is for Slurm; add --cluster slurm, or leave it out")
        import_submitit()
        found = _gpus()
        if (gpus or 0) > len(found):
            raise InputError(f"--gpus is {gpus}, and this machine has {len(found)}")
        return LocalPool(jobs or 1, found, min(1, len(found)) if gpus is None else gpus)
    further = {key: value or True for key, _, value in (option.partition("=") for option in sbatch)}
    ranks = 1 if gpus is None else gpus
    parameters = {
        "job_name": "stitchkit",
        "partition": partition,
        "time": max(1, round(hours * 60)),
        "ntasks_per_node": max(1, ranks),
        "gpus_per_node": ranks or None,
        "cpus_per_task": cpus,
        "srun_args": None if cpus is None else [f"--cpus-per-task={cpus}"],  # srun ignores what sbatch was given
        "array_parallelism": jobs,
        "mem": None if mem_gb is None else f"{round(1024 * mem_gb)}MB",
        "additional_parameters": {"requeue": True, **further},
    }
    return Slurm(folder / "submitit", {key: value for key, value in parameters.items() if value is not None})


def import_submitit() -> ModuleType:
    """The library that runs jobs.

    Raises:
        InputError: If it is not installed.
    """
    try:
        import submitit
    except ImportError as error:
        raise InputError(
            "sweeps run through submitit, which is not installed; pip install 'stitchkit[jobs]'"
        ) from error
    module: ModuleType = submitit
    return module


def _new_folder(place: Path) -> Path:
    """A new folder in `place` for the files of submitit.

    submitit follows links, and names its files by numbers that processes may get again.

    Raises:
        InputError: If `place` is a symbolic link.
    """
    refuse_link(place)
    place.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(dir=place))


def _submission(folder: JobFolder) -> str | None:
    """The number that Slurm gave a job; None where it was not submitted."""
    return folder.submission.read_text().strip() if folder.submission.exists() else None


def _queue() -> set[str]:
    """Numbers of this user's jobs in Slurm's queue, each element of an array by itself.

    Raises:
        InputError: If Slurm does not answer.
    """
    # Not sacct, which submitit asks: it needs an accounting database, which not every cluster has.
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
    """Numbers of the GPUs that this process may use.

    Raises:
        InputError: If they are not named by numbers.
    """
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return list(range(torch.cuda.device_count()))
    try:
        return [int(name) for name in visible.split(",") if name]
    except ValueError as error:
        raise InputError(f"CUDA_VISIBLE_DEVICES is '{visible}'; name GPUs by their numbers") from error

"""The place where the jobs of a sweep run: a pool of processes on this machine, or Slurm, both through submitit."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from stitchkit.assembly.sweep.settings import Place, Resources, read_place
from stitchkit.assembly.sweep.worker import State, SweepJob
from stitchkit.display import counted
from stitchkit.errors import InputError
from stitchkit.files import refuse_link, write_text
from stitchkit.optional import check_installed

if TYPE_CHECKING:
    from submitit import LocalJob

_logger = logging.getLogger(__name__)

_LOCAL_POLL_S = 2
_NO_LIMIT = 60 * 24 * 365  # more minutes and more preemptions than any job has; submitit needs a number for both


@dataclass
class _Slot:
    """The place of one job at a time; without a process, it may be running in one that an earlier sweep started."""

    job: SweepJob | None = None
    process: LocalJob | None = None

    def has_ended(self, job: SweepJob) -> bool:
        if job.is_running:
            return False
        return self.process.done() if self.process else job.state != "waiting"


@dataclass(frozen=True)
class LocalPool:
    """Jobs on this machine, each in its own process; they share its GPUs if there are too few."""

    on_nodes: ClassVar[bool] = False
    is_detached: ClassVar[bool] = False

    limit: int
    gpus: Sequence[int] = ()
    num_gpus: int = 0

    def when_stopped(self, _: Iterable[SweepJob]) -> str:
        """What becomes of the jobs when the sweep is stopped, in words."""
        return "jobs that were running save their state and end"

    def run(self, jobs: Sequence[SweepJob]) -> Generator[SweepJob, None, None]:
        """Run jobs, and yield each when it has ended, with or without a result.

        If the generator is closed before, the jobs that are running save their state and end.
        """
        waiting = list(jobs)
        slots = [_Slot() for _ in range(self.limit)]
        try:
            while True:
                for number, slot in enumerate(slots):
                    if slot.job and slot.has_ended(slot.job):
                        yield slot.job
                        slot.job = slot.process = None
                    if waiting and slot.job is None:
                        slot.job = waiting.pop(0)
                    # Jobs outlive a killed sweep, and keep their slots and GPUs until they end; one that is killed too
                    # starts again here.
                    if (job := slot.job) and not slot.process and not job.is_running and job.state == "waiting":
                        slot.process = self._submit(job, number)
                if not any(slot.job for slot in slots):
                    return
                time.sleep(_LOCAL_POLL_S)
        finally:
            for process in [slot.process for slot in slots]:
                if process and not process.done():
                    os.kill(int(process.job_id), signal.SIGTERM)  # submitit passes it on to the ranks

    def _submit(self, job: SweepJob, slot: int) -> LocalJob:
        import submitit
        from submitit.helpers import environment_variables

        executor = submitit.LocalExecutor(_new_folder(job.path / "submitit", job.submits))
        first = slot * self.num_gpus
        chosen = [self.gpus[number % len(self.gpus)] for number in range(first, first + self.num_gpus)]
        executor.update_parameters(
            timeout_min=_NO_LIMIT, tasks_per_node=max(1, self.num_gpus), gpus_per_node=self.num_gpus,
            visible_gpus=chosen, stderr_to_stdout=True,
        )  # fmt: skip
        # By default torch uses all cores in each job, so that the jobs would slow each other down.
        threads = str(max(1, (os.cpu_count() or 1) // self.limit))
        # Ctrl-C reaches all processes of a terminal. submitit's would print tracebacks, and kill the job before it has
        # saved its state; started like this, they ignore it.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            with environment_variables(OMP_NUM_THREADS=os.environ.get("OMP_NUM_THREADS", threads)):
                process = executor.submit(job)
        finally:
            signal.signal(signal.SIGINT, before)
        _logger.info("started %s; log: %s", job.name, job.log)
        return process


@dataclass(frozen=True)
class Slurm:
    """One job array on a Slurm cluster. Its jobs survive this process; the next one finds them in the queue.

    All nodes see `folder`, where submitit keeps its files.
    """

    on_nodes: ClassVar[bool] = True

    folder: Path
    parameters: Mapping[str, object]
    poll_s: float
    limit: int | None = None
    is_detached: bool = False

    def run(self, jobs: Sequence[SweepJob]) -> Generator[SweepJob, None, None]:
        """Submit the jobs that are not in the queue already, and yield each when it has ended."""
        watched = self.submit(jobs)
        if self.is_detached:
            _logger.info("repeat the command to see how far they are")
            return
        missed: set[str] = set()
        while watched:
            time.sleep(self.poll_s)
            try:
                gone = set(watched) - set(_queue())
            except InputError as error:  # its daemon may be restarting while the jobs run
                _logger.warning("%s", error)
                continue
            for number, job in list(watched.items()):
                # On a shared file system, a result may appear after the end of its job, so look twice.
                if number in gone and (job.state in ("done", "failed") or number in missed):
                    yield watched.pop(number)
            missed = gone

    def submit(self, jobs: Sequence[SweepJob]) -> dict[str, SweepJob]:
        """Submit the jobs that are not in the queue already, and return all of them by their numbers there."""
        queue = _queue()
        submitted = {number: job for job in jobs if (number := job.number) in queue}
        fresh = [job for job in jobs if job not in submitted.values()]
        for job, number in zip(fresh, self._submit(fresh) if fresh else (), strict=True):
            write_text(job.submission, number)
            submitted[number] = job
        if fresh:
            array = arrays(fresh)
            _logger.info("submitted %s as %s; to cancel: scancel %s", counted(len(fresh), "job"), array, array)
        return submitted

    def check(self) -> None:
        """Refuse a machine without Slurm, before anything is written."""
        _queue()

    def when_stopped(self, jobs: Iterable[SweepJob]) -> str:
        """What becomes of the jobs when the sweep is stopped, in words."""
        return f"the jobs continue in Slurm; to cancel them: scancel {arrays(jobs)}"

    def script(self, num_jobs: int) -> str:
        """The script for sbatch that submits a number of jobs."""
        # submitit makes scripts in public only where Slurm is, and for jobs that it submits at once. A test compares
        # this one with the one that is sent.
        from submitit.slurm.slurm import _make_sbatch_string

        folder = self.folder / "NEW"
        command = f"{shlex.quote(sys.executable)} -u -m submitit.core._submit {shlex.quote(str(folder.absolute()))}"
        count = num_jobs if num_jobs > 1 else None  # a single job is not an array
        script: str = _make_sbatch_string(command, folder.absolute(), map_count=count, **self._options)
        return script

    @property
    def _options(self) -> dict[str, Any]:
        # submitit's own workload key is refused where keys are checked. The output of a failed start is in one file.
        return {"wckey": None, "stderr_to_stdout": True, **self.parameters}

    def _submit(self, jobs: Sequence[SweepJob]) -> list[str]:
        import submitit

        try:
            # A job whose time is up is requeued and resumes.
            executor = submitit.SlurmExecutor(_new_folder(self.folder), max_num_timeout=_NO_LIMIT)
            executor.update_parameters(**self._options)
            with executor.batch():
                submitted = [executor.submit(job) for job in jobs]
        except (RuntimeError, submitit.core.utils.FailedJobError) as error:
            advice = "correct the flags for Slurm, whose script --dry-run shows"
            raise InputError(f"Slurm does not accept the jobs: {str(error).strip()}; {advice}") from error
        return [job.job_id for job in submitted]


def states(jobs: Sequence[SweepJob]) -> dict[SweepJob, State]:
    """The state of each job, also if it runs on a node of Slurm whose locks are not seen here."""
    each = {job: job.state for job in jobs}
    if submitted := {number: job for job, state in each.items() if state == "waiting" and (number := job.number)}:
        with suppress(InputError):  # this machine may not belong to the cluster
            queue = _queue()
            each |= {job: "running" for number, job in submitted.items() if queue.get(number, "PD") != "PD"}
    return each


def create_cluster(
    name: str, *, folder: Path, resources: Resources | None = None, **flags: object
) -> LocalPool | Slurm:
    """The place, `local` or `slurm`, of the jobs of the sweep in a folder, by the flags of `stitchkit sweep`.

    Flags take precedence over `resources`, those in the file of the sweep.
    """
    options = read_place({"cluster": name, **flags}, resources)
    check_installed(["submitit"], "jobs", "a sweep")
    if options.cluster == "slurm":
        return Slurm(folder / "submitit", _parameters(options), options.poll, options.jobs, options.detach)
    gpus = _gpus()
    num_gpus = options.gpus if "gpus" in flags else min(1, len(gpus))
    if num_gpus > len(gpus):
        raise InputError(f"--gpus is {num_gpus}, but this machine has {len(gpus)}; lower it, or use --cluster slurm")
    return LocalPool(options.jobs or 1, gpus, num_gpus)


def _parameters(place: Place) -> dict[str, object]:
    # submitit expects true for options without a value, such as `exclusive`.
    further = {key: value or True for key, _, value in (option.partition("=") for option in place.sbatch)}
    lines = [*(f"module load {name}" for name in place.modules), *place.setup]
    parameters = {
        "job_name": "stitchkit", "partition": place.partition, "time": max(1, round(place.hours * 60)),
        "ntasks_per_node": max(1, place.gpus), "gpus_per_node": place.gpus or None, "cpus_per_task": place.cpus,
        "srun_args": None if place.cpus is None else [f"--cpus-per-task={place.cpus}"],  # srun ignores sbatch's option
        "array_parallelism": place.jobs,
        "mem": None if place.mem_gb is None else f"{round(1024 * place.mem_gb)}MB",
        "setup": lines or None,
        # Slurm requeues preempted jobs only if they allow it, which is not the default everywhere.
        "additional_parameters": {"requeue": True, **further},
    }  # fmt: skip
    return {key: value for key, value in parameters.items() if value is not None}


def _new_folder(folder: Path, begin: str | None = None) -> Path:
    """A new folder for the files of submitit, which follows links and names files by process numbers, which recur."""
    refuse_link(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(dir=folder, prefix=begin))


def arrays(jobs: Iterable[SweepJob]) -> str:
    """Slurm's numbers of the arrays, or single jobs, that hold some jobs."""
    return " ".join(dict.fromkeys(job.number.partition("_")[0] for job in jobs if job.number))


def _queue() -> dict[str, str]:
    """The codes of the states of this user's jobs in Slurm's queue by number, one for each element of an array."""
    # Not sacct, which submitit uses: it needs an accounting database, which not every cluster has.
    command = ["squeue", "--noheader", "--array", "--me", "--format=%i %t"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except FileNotFoundError as error:
        raise InputError("this machine has no Slurm; use --cluster local, or a machine of the cluster") from error
    except subprocess.CalledProcessError as error:
        raise InputError(f"Slurm does not answer: {error.stderr.strip()}; check it with squeue --me") from error
    return dict(line.split(maxsplit=1) for line in output.splitlines())


def _gpus() -> list[int]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return list(range(torch.cuda.device_count()))
    try:
        return [int(name) for name in visible.split(",") if name]
    except ValueError as error:
        raise InputError(f"CUDA_VISIBLE_DEVICES is '{visible}'; name GPUs by their numbers") from error

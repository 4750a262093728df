"""Running a sweep: finished jobs are skipped, failed ones are listed, and the rest are started and watched."""

from __future__ import annotations

import argparse
import logging
import signal
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import fields
from datetime import timedelta
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn

import torch

from stitchkit.assembly.config.job import JobConfig
from stitchkit.assembly.config.job_settings import override
from stitchkit.assembly.parts.network import own_arguments
from stitchkit.assembly.parts.part import Part
from stitchkit.assembly.parts.pretrained import Pretrained
from stitchkit.assembly.parts.registry import PARTS
from stitchkit.assembly.parts.spec import all_parts
from stitchkit.assembly.sweep.cluster import LocalPool, Slurm, create_cluster, states
from stitchkit.assembly.sweep.config import load_sweep
from stitchkit.assembly.sweep.plan import PlannedJob, Sweep, choose, table
from stitchkit.assembly.sweep.report.tables import sweep_report
from stitchkit.assembly.sweep.settings import Place
from stitchkit.assembly.sweep.worker import SweepJob, counts
from stitchkit.assembly.train.data import download_data, open_data
from stitchkit.assembly.train.run import run_job
from stitchkit.data.source import MissingData
from stitchkit.display import counted
from stitchkit.distributed import World
from stitchkit.engine.run_log import begin_log, collected
from stitchkit.engine.signals import SIGNALS
from stitchkit.errors import InputError, Stopped, one_line
from stitchkit.files import own_folder

_logger = logging.getLogger(__name__)


def show_plan(sweep: Sweep, jobs: Mapping[int, PlannedJob], folder: Path, cluster: LocalPool | Slurm | None) -> None:
    """Print jobs of a sweep by their numbers, how many are done, and for Slurm the script that submits the rest."""
    print(table(jobs))
    names = [job.name for job in jobs.values() if job.applies]
    num_jobs = len(names) * len(sweep.seeds)
    num_done = sum(SweepJob(folder / name, seed).state == "done" for name in names for seed in sweep.seeds)
    numbers = ", ".join(map(str, sweep.seeds))
    seeds = f" with seed {numbers}" if len(sweep.seeds) == 1 else f": {len(names)} with each of the seeds {numbers}"
    seeds = "" if sweep.seeds == (None,) else seeds
    done = f"; {num_done} done already in '{folder}'" if num_done else ""
    print(f"{counted(num_jobs, 'job')}{seeds}; {counted(len(jobs) - len(names), 'combination')} left out{done}")
    if isinstance(cluster, Slurm) and num_done < num_jobs:
        print(f"\n{cluster.script(num_jobs - num_done)}")


def launch(
    sweep: Sweep, folder: Path, cluster: LocalPool | Slurm, *, only: Collection[str] | None, retry_failed: bool
) -> None:
    """Run the jobs of a sweep, round by round; a search continues without its failed trials."""
    failures = []
    if isinstance(cluster, Slurm):
        cluster.check()
    import submitit  # noqa: F401  # importing it configures logging, which closes the handlers that there are

    # The log is collected for `begin_log`: a sweep that is refused leaves its folder alone.
    with collected(World(0, 1, torch.device("cpu"))):
        for jobs in sweep.rounds(folder, cluster.limit):
            planned = [job for job in jobs if job.applies and (only is None or job.name in only)]
            runs = write_folders(planned, folder, sweep.seeds)
            begin_log(folder)
            if any(run.state == "waiting" for run in runs):
                check_inputs(planned, on_nodes=cluster.on_nodes)
            try:
                run_sweep(runs, cluster, retry_failed=retry_failed)
            except InputError as error:
                failures.append(error)
        if failures:
            raise failures[-1]


def write_folders(plan: Sequence[PlannedJob], folder: Path, seeds: Sequence[int | None]) -> list[SweepJob]:
    """A folder for every job, which the runs with all seeds share; a finished job keeps its configuration.

    Raises:
        InputError: If a job in the folder has started with other settings; nothing is written then.
    """
    runs = [(planned, SweepJob(folder / planned.name, seed)) for planned in plan for seed in seeds]
    # All are checked before the first is written, so that a refused sweep changes nothing.
    for planned, run in runs:
        _check_settings(run, planned.parsed)
    for planned, run in runs:
        if run.state != "done":
            planned.write(folder)
            own_folder(run.checkpoints)  # it tells a report of the run before this begins
        elif not planned.parsed.save_checkpoints:
            run.remove_checkpoints()  # a sweep that was killed right after the result did not
    return [run for _, run in runs]


def _check_settings(job: SweepJob, config: JobConfig) -> None:
    """Refuse settings other than those that a job started with: one table must not mix them, whatever the seed."""
    settings = job.path / "config.yml"
    has_files = any(job.path.glob("result*.pkl")) or any(job.path.glob("result*/*.pth"))
    if not has_files and not job.is_running:  # one that is running may have read its settings already
        return
    own_folder(job.path)  # a link to nothing must be refused as a link, not taken for a missing file
    if not settings.exists():
        raise InputError(
            f"'{job.path}' holds a result or checkpoints, but no config.yml with their settings; put it back, choose "
            "another -o, or remove the folder"
        )
    if changes := JobConfig.load(settings).changes(config):
        raise InputError(
            f"'{job.path}' was trained with other settings ({changes}); the sweeps in a folder share their settings, "
            "so use the same, choose another -o, or remove the folder"
        )


def run_sweep(jobs: Sequence[SweepJob], cluster: LocalPool | Slurm, *, retry_failed: bool = False) -> None:
    """Run all jobs that have no result; those that failed before are only listed, unless `retry_failed`."""
    if retry_failed:
        for job in jobs:
            job.failure.unlink(missing_ok=True)
    before = states(jobs)
    _logger.info("%s", counts(before.values()))
    left = [job for job, state in before.items() if state in ("running", "waiting")]
    if left:
        _watch(left, cluster)
    interrupted = [] if cluster.is_detached else [job for job in left if job.state in ("running", "waiting")]
    _list_unfinished(jobs, interrupted=interrupted)


def _watch(jobs: Sequence[SweepJob], cluster: LocalPool | Slurm) -> None:
    how = {"done": "done", "failed": "FAILED"}
    # Exit with the status of a stopped program, but stop the jobs first. Shells let background commands of scripts
    # ignore Ctrl-C; their jobs end with it, so the sweep must not start the next ones.
    before = {number: signal.signal(number, _raise_stopped) for number in SIGNALS}
    start = time.monotonic()
    try:
        with closing(cluster.run(jobs)) as ended:
            for number, job in enumerate(ended, 1):
                passed = time.monotonic() - start
                # On average, the others that run now are half done.
                done = number + (min(cluster.limit or len(jobs), len(jobs) - number + 1) - 1) / 2
                seconds = passed, passed / done * (len(jobs) - done)
                _logger.info(
                    "%d/%d %s: %s; %s so far, about %s left", number, len(jobs), job.name,
                    how.get(job.state, "INTERRUPTED"), *(timedelta(seconds=round(each)) for each in seconds),
                )  # fmt: skip
    except Stopped as stop:
        raise Stopped(stop.number, cluster.when_stopped(jobs)) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _raise_stopped(number: int, _: object) -> NoReturn:
    raise Stopped(number, "")


def smoke(plan: Sequence[PlannedJob]) -> None:
    """Train and test every job for one step in this process, in a folder that is removed."""
    num_failed = 0
    for number, job in enumerate(plan, 1):
        reason = _first_step(job)
        num_failed += bool(reason)
        _logger.info("%d/%d %s: %s", number, len(plan), job.name, reason or "runs")
    if num_failed:
        raise InputError(
            f"{num_failed} of {counted(len(plan), 'job')} failed for the reasons above; correct them before the sweep"
        )


def _first_step(job: PlannedJob) -> str:
    """The reason why a job cannot train and test for one step; empty if it can."""
    batches = job.parsed.train_config.grad_accum_steps
    short = {"epochs": 1, "max_batches": batches, "save_checkpoints": False, "checkpoint_interval": 0, "project": None}
    disabled = logging.root.manager.disable
    try:
        logging.disable(logging.INFO)
        with TemporaryDirectory() as folder:
            run_job(JobConfig.parse(override(job.config, {**short, "save_dir": folder})))
    except Stopped:
        raise
    except Exception as error:  # torch and the models raise many types
        return f"FAILED, {error if isinstance(error, InputError) else one_line(error)}"
    finally:
        logging.disable(disabled)
    return ""


def _list_unfinished(jobs: Sequence[SweepJob], *, interrupted: Sequence[SweepJob]) -> None:
    failed = [job for job in jobs if job.state == "failed"]
    for job in failed:
        _logger.info("failed: %s\n  %s\n  log: %s", job.name, job.failure.read_text().strip(), job.log)
    # A killed job wrote no reason, and its own settings need not be the cause, so it may run again.
    for job in interrupted:
        _logger.info("interrupted: %s\n  killed, cancelled or out of memory\n  log: %s", job.name, job.log)
    if failed:
        raise InputError(
            f"{counted(len(failed), 'job')} failed, listed above with the logs; fix the cause and repeat the command "
            "with --retry-failed"
        )
    if interrupted:
        raise InputError(
            f"{counted(len(interrupted), 'job')} interrupted, listed above with the logs; repeat the command to resume"
        )


_SLICE = ("block_input", "block_output")  # arguments that say which slice of a model a part is


def check_inputs(jobs: Iterable[PlannedJob], *, on_nodes: bool) -> None:
    """Open the data and load the weights of jobs, each once; what is missing is reported before anything is computed.

    On other machines' nodes, missing data are only a warning.
    """
    configs = [job.parsed for job in jobs]
    different = {  # jobs that prepare the images in other ways read the same files
        (config.data_path, *((task.dataset, task.val_split) for task in config.train_config.resolved_tasks)): config
        for config in configs
    }
    try:
        for config in different.values():
            open_data(config, World(0, 1, torch.device("cpu")))
    except MissingData as error:
        if not on_nodes:
            raise
        _logger.warning("%s; the jobs fail unless the nodes have it", error)
    # The nodes may have no network, and jobs that start together would download the same files.
    parts = {repr(part): part for config in configs for part in _pretrained_parts(config)}
    if parts:
        _logger.info("loading the weights of %s", counted(len(parts), "part"))
    for build in parts.values():
        build()


def _pretrained_parts(config: JobConfig) -> Iterator[Callable[[], Part]]:
    """What builds each part of a job that reads weights."""
    for part in all_parts(config.network):
        if issubclass(kind := PARTS[part.name], Pretrained):
            own = own_arguments(part, pretrained=config.pretrained, replaced=config.replaces_weights)
            if own.get("ckp_path") is None:  # all slices of a model are of the same download
                own = {key: value for key, value in own.items() if key not in _SLICE}
            if own.get("pretrained", True) or own.get("ckp_path"):
                yield partial(kind, **own)


def run(flags: argparse.Namespace) -> None:
    """Run `stitchkit sweep`."""
    settings = vars(flags)
    folder, picture_format = settings.pop("report"), settings.pop("format")
    if folder is not None:
        _print_report(folder, picture_format)
        return
    path, output, only, is_dry, is_smoke, retry_failed = (
        settings.pop(key) for key in ("config", "output", "only", "dry_run", "smoke", "retry_failed")
    )
    options = {field.name: settings.pop(field.name) for field in fields(Place) if field.name in settings}
    download = settings.pop("download", False)
    sweep = load_sweep(path, **settings)
    jobs = choose(sweep.jobs, only)
    name = options.pop("cluster")
    enter = partial(create_cluster, name, folder=Path(output), resources=sweep.resources, **options)
    if is_dry:  # the plan may be for another machine, with other GPUs, but it shows Slurm's script
        show_plan(sweep, jobs, Path(output), enter() if name == "slurm" else None)
        return
    planned = [job for job in jobs.values() if job.applies]
    if download:  # once, before jobs that start together would all do it
        download_data(job.parsed for job in planned)
    if is_smoke:
        smoke(planned)
    else:
        names = {job.name for job in planned} if only else None
        cluster = enter()
        launch(sweep, Path(output), cluster, only=names, retry_failed=retry_failed)
        if not cluster.is_detached:
            _print_report(output, picture_format)


def _print_report(folder: str, picture_format: str) -> None:
    for file in sweep_report(folder, picture_format=picture_format):
        print(file)

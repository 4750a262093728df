"""The commands of stitching jobs."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from stitchkit.errors import InputError
from stitchkit.parser import Command


def _add_report_flags(report: argparse.ArgumentParser) -> None:
    report.add_argument("folder", metavar="DIR", help="output folder of a sweep")


def _add_training_flags(parser: argparse.ArgumentParser) -> Callable[..., object]:
    """Add the flags that jobs and sweeps share; return what adds a further flag for a key of the file."""
    add = partial(parser.add_argument, default=argparse.SUPPRESS)  # a flag that is not given leaves the file's value
    number = partial(add, type=int, metavar="N")
    add("--data-path", metavar="DIR", help="folder of the data sets")
    number("--epochs", help="number of epochs")
    number("-m", "--max-batches", help="use only N random batches of the data")
    number("--seed", help="seed of weights, order and augmentation; names the results of a sweep")
    add("--device", metavar="DEVICE", help="cpu, cuda or cuda:N; by default cuda if available")
    number("-j", "--workers", help="loader processes of each rank")
    add("--no-pretrained", action="store_false", dest="pretrained", help="start from random weights")
    return add


def _add_sweep_flags(sweep: argparse.ArgumentParser) -> None:
    add, number = sweep.add_argument, partial(sweep.add_argument, type=int, metavar="N")
    add("-c", "--config", required=True, metavar="YAML", help="configuration of the sweep")
    add("-o", "--output", default="outputs/sweeps", metavar="DIR", help="folder for the folders of all jobs")
    add("-n", "--dry-run", action="store_true", help="print the plan without running it")
    add("--retry-failed", action="store_true", help="rerun the jobs that failed before")
    number("--jobs", help="number of jobs at a time; by default 1, or all with Slurm")
    add("--cluster", choices=("local", "slurm"), default="local", help="where the jobs run")
    number("--gpus", help="GPUs per job; by default 1, or 0 on a machine without GPUs")
    add("--partition", metavar="NAME", help="Slurm's partition")
    number("--cpus", help="with Slurm, CPUs per GPU of a job")
    add("--mem-gb", type=float, metavar="N", help="with Slurm, memory per job")
    about = "with Slurm, time limit of a job, after which it is requeued and resumes"
    add("--hours", type=float, default=24, metavar="N", help=about)
    add("--sbatch", nargs="+", default=[], metavar="KEY=VALUE", help="further options for sbatch")
    _add_training_flags(sweep)


def _add_job_flags(job: argparse.ArgumentParser) -> None:
    job.add_argument("-c", "--config", required=True, metavar="YAML", help="configuration of the job")
    add = _add_training_flags(job)
    number, switch = partial(add, type=int, metavar="N"), partial(add, action="store_true")
    add("-o", "--output", dest="save_dir", metavar="DIR", help="folder of the job; by default outputs/<configuration>")
    add("--metrics-output", metavar="FILE", help="file of the result; by default result.pkl in the job's folder")
    add("--lr", type=float, metavar="RATE", help="learning rate of the optimizer")
    number("-b", "--batch-size", help="images per step and rank")
    number("--max-steps", help="stop after N steps")
    number("--print-freq", help="steps between log lines")
    add("--load-from", "--weights", metavar="FILE", help="start from the weights in this file")
    about = "checkpoint of a job to resume from; auto is the newest good one in the job's folder"
    add("--resume-from", "--resume", metavar="FILE", help=about)
    number("--start-epoch", help="number of epochs that count as done")
    switch("--test-only", help="test without training")
    switch("--save-checkpoints", help="save a checkpoint after each epoch")
    about = "steps between checkpoints within an epoch; with 0, only when a signal stops the job"
    number("--checkpoint-interval", help=about)
    number("--grad-accum-steps", help="batches per step, whose gradients add up")
    switch("--amp", help="mixed precision")
    add("--amp-dtype", choices=("float16", "bfloat16"), help="low precision of --amp; CPUs always use bfloat16")
    switch("--model-ema", help="keep a moving average of the weights, and test it too")
    add("--model-ema-decay", type=float, metavar="RATE", help="decay of --model-ema")
    add("--no-eval-checkpoints", action="store_false", dest="eval_checkpoints", help="do not test after each epoch")
    switch("--unfrozen", help="train all parts")
    switch("--deterministic", help="use only deterministic algorithms")
    about = "a very short run: one epoch of three batches per rank (torchrun accepts only the longer name)"
    switch("--st", "--smoke-test", dest="smoke_test", default=False, help=about)


def _job(flags: argparse.Namespace) -> None:
    from stitchkit.assembly.config.job import JobConfig
    from stitchkit.assembly.train.run import run_job

    settings = vars(flags)
    source = settings.pop("config")
    if settings.pop("smoke_test"):
        ranks = int(os.environ.get("WORLD_SIZE", 1))
        settings = {"epochs": 1, "max_batches": 3 * ranks, "save_checkpoints": True, "print_freq": 1, **settings}
    config = JobConfig.load(source, **settings)
    if config.test_only and not config.pretrained and not (config.load_from or config.resume_from):
        raise InputError("--test-only needs trained weights; set --load-from FILE, or omit --no-pretrained")
    run_job(config, Path(source))


def _sweep(flags: argparse.Namespace) -> None:
    from stitchkit.assembly.sweep.cluster import create_cluster
    from stitchkit.assembly.sweep.config import SweepConfig
    from stitchkit.assembly.sweep.launch import run_sweep, write_folders
    from stitchkit.assembly.sweep.plan import plan, table

    settings = vars(flags)
    own = ("config", "output", "dry_run", "retry_failed")
    path, output, is_dry, retry = (settings.pop(key) for key in own)
    places = ("jobs", "cluster", "gpus", "partition", "cpus", "mem_gb", "hours", "sbatch")
    place = {key: settings.pop(key) for key in places}
    jobs = plan(config := SweepConfig.load(path, **settings))
    if is_dry:
        print(table(jobs))
        applicable = sum(job.config is not None for job in jobs)
        print(f"{applicable} jobs; {len(jobs) - applicable} combinations do not apply")
        return
    cluster = create_cluster(place.pop("cluster"), folder=Path(output), **place)
    run_sweep(write_folders(jobs, Path(output), config.seed), cluster, retry_failed=retry)


def _sweep_report(flags: argparse.Namespace) -> None:
    from stitchkit.assembly.sweep.report import sweep_report

    for file in sweep_report(flags.folder):
        print(file)


job = Command(_job, "train an assembly of pretrained parts and adapters", _add_job_flags)
sweep = Command(
    _sweep, "bridge every gap between two networks with every stitcher, one job for each pair", _add_sweep_flags
)
sweep_report = Command(_sweep_report, "collect the results of sweeps into one table and draw them", _add_report_flags)

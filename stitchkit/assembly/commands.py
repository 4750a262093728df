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
    """Add the flags that jobs and sweeps share.

    Returns:
        A function that adds further flags for keys of the file; flags that are not given do not override the file.
    """
    add = partial(parser.add_argument, default=argparse.SUPPRESS)
    add("--data-path", metavar="DIR", help="folder of the data sets")
    add("--epochs", type=int, metavar="N", help="number of epochs")
    add("-m", "--max-batches", type=int, metavar="N", help="use only N random batches of the data")
    add(
        "--seed",
        type=int,
        metavar="N",
        help="seed of weights, order and augmentation; names the results of a sweep",
    )
    add("--device", metavar="DEVICE", help="cpu, cuda or cuda:N; by default cuda if available")
    add("-j", "--workers", type=int, metavar="N", help="loader processes of each rank")
    add("--no-pretrained", action="store_false", dest="pretrained", help="start from random weights")
    return add


def _add_sweep_flags(sweep: argparse.ArgumentParser) -> None:
    add = sweep.add_argument
    add("-c", "--config", required=True, metavar="YAML", help="configuration of the sweep")
    add("-o", "--output", default="outputs/sweeps", metavar="DIR", help="folder for the folders of all jobs")
    add("-n", "--dry-run", action="store_true", help="print the plan without running it")
    add("--retry-failed", action="store_true", help="rerun the jobs that failed before")
    add("--jobs", type=int, metavar="N", help="number of jobs at a time; by default 1, or all with Slurm")
    add("--cluster", choices=("local", "slurm"), default="local", help="where the jobs run")
    add("--gpus", type=int, metavar="N", help="GPUs per job; by default 1, or 0 on a machine without GPUs")
    add("--partition", metavar="NAME", help="Slurm's partition")
    add("--cpus", type=int, metavar="N", help="with Slurm, CPUs per GPU of a job")
    add("--mem-gb", type=float, metavar="N", help="with Slurm, memory per job")
    add(
        "--hours",
        type=float,
        default=24,
        metavar="N",
        help="with Slurm, time limit of a job, after which it is requeued and resumes",
    )
    add("--sbatch", nargs="+", default=[], metavar="KEY=VALUE", help="further options for sbatch")
    _add_training_flags(sweep)


def _add_job_flags(job: argparse.ArgumentParser) -> None:
    job.add_argument("-c", "--config", required=True, metavar="YAML", help="configuration of the job")
    add = _add_training_flags(job)
    add("-o", "--output", dest="save_dir", metavar="DIR", help="folder of the job; by default outputs/<configuration>")
    add("--metrics-output", metavar="FILE", help="file of the result; by default result.pkl in the job's folder")
    add("--lr", type=float, metavar="RATE", help="learning rate of the optimizer")
    add("-b", "--batch-size", type=int, metavar="N", help="images per step and rank")
    add("--max-steps", type=int, metavar="N", help="stop after N steps")
    add("--print-freq", type=int, metavar="N", help="steps between log lines")
    add("--load-from", "--weights", metavar="FILE", help="start from the weights in this file")
    add(
        "--resume-from", "--resume", metavar="FILE",
        help="checkpoint of a job to resume from; auto is the newest good one in the job's folder",
    )  # fmt: skip
    add("--start-epoch", type=int, metavar="N", help="number of epochs that count as done")
    add("--test-only", action="store_true", help="test without training")
    add("--save-checkpoints", action="store_true", help="save a checkpoint after each epoch")
    add(
        "--checkpoint-interval", type=int, metavar="N",
        help="steps between checkpoints within an epoch; with 0, only when a signal stops the job",
    )  # fmt: skip
    add("--grad-accum-steps", type=int, metavar="N", help="batches per step, whose gradients add up")
    add("--amp", action="store_true", help="mixed precision")
    add("--amp-dtype", choices=("float16", "bfloat16"), help="low precision of --amp; CPUs always use bfloat16")
    add("--model-ema", action="store_true", help="keep a moving average of the weights, and test it too")
    add("--model-ema-decay", type=float, metavar="RATE", help="decay of --model-ema")
    add("--no-eval-checkpoints", action="store_false", dest="eval_checkpoints", help="do not test after each epoch")
    add("--unfrozen", action="store_true", help="train all parts")
    add("--deterministic", action="store_true", help="use only deterministic algorithms")
    job.add_argument(
        "--st", "--smoke-test", action="store_true", dest="smoke_test",
        help="a very short run: one epoch of three batches per rank (torchrun accepts only the longer name)",
    )  # fmt: skip


def _job(flags: argparse.Namespace) -> None:
    from stitchkit.assembly.train.result import check_pandas

    check_pandas()
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
    config = SweepConfig.load(path, **settings)
    jobs = plan(config)
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

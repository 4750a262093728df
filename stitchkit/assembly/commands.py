"""The commands of stitching jobs."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

from stitchkit.assembly.config.job_settings import JobSettings, check_flags
from stitchkit.assembly.config.settings import Preprocessing, TrainConfig
from stitchkit.parser import DATA_FLAGS, REPEAT, Command, add_shared
from stitchkit.settings.flags import show_defaults


def _add_training_flags(parser: argparse.ArgumentParser, *, is_sweep: bool) -> Callable[..., object]:
    """Add the flags that jobs and sweeps share; return what adds a further flag for a key of the file."""
    add = partial(parser.add_argument, default=argparse.SUPPRESS)  # a flag that is not given leaves the file's value
    number = partial(add, type=int, metavar="N")
    add(*DATA_FLAGS, dest="data_path", metavar="DIR", help="folder of the data sets")
    add("--download", action="store_true", help="download missing data sets")
    number("-e", "--epochs", help="number of epochs")
    number("-m", "--max-batches", help="use only N random batches of the data")
    seed = partial(parser.add_mutually_exclusive_group().add_argument, type=int, metavar="N", default=argparse.SUPPRESS)
    seed("--seed", help="seed of weights, order and augmentation; names the results of a sweep")
    if is_sweep:
        seed("--seeds", nargs="+", help="run every job once with each")
    add("-d", "--device", metavar="DEVICE", help="cpu, cuda, cuda:N or N; by default cuda if available")
    number("-j", "--workers", help="loader processes of each rank")
    add("--no-pretrained", action="store_false", dest="pretrained", help="use files or random weights, no downloads")
    return add


def _add_sweep_flags(sweep: argparse.ArgumentParser) -> None:
    train = _add_training_flags(sweep, is_sweep=True)
    add = sweep.add_argument
    source = sweep.add_mutually_exclusive_group(required=True)
    source.add_argument("-c", "--config", metavar="YAML", help="configuration of the sweep")
    source.add_argument("--report", metavar="DIR", help="only make tables and pictures of the results in this folder")
    add_shared(sweep, "--format")
    train("--trials", dest="run_cap", type=int, metavar="N", help="trials of a search; 10, or a whole grid")
    add("-o", "--output", default="outputs/sweeps", metavar="DIR", help="folder for the folders of the jobs")
    about = "only these jobs: numbers in the plan (3, 5-7), names, or patterns of names ('*finetune')"
    add("--only", nargs="+", default=[], metavar="JOB", help=about)
    switch = partial(sweep.add_mutually_exclusive_group().add_argument, action="store_true")
    switch("-n", "--dry-run", help="only print the plan, and with Slurm the script of its jobs")
    switch("--smoke", "--st", "--smoke-test", help="run one step of every job in this process, and keep no files")
    switch("--detach", default=argparse.SUPPRESS, help="with Slurm, submit the jobs and return; repeat it for progress")
    add("--retry-failed", action="store_true", help="rerun jobs that failed")
    train("--jobs", type=int, metavar="N", help="jobs to run at a time; by default 1, or all with Slurm")
    add("--cluster", choices=("local", "slurm"), default="local", help="where the jobs run")
    train("--gpus", type=int, metavar="N", help="GPUs per job; by default 1, or 0 on a machine without GPUs")
    about = "for each job; `slurm` in the file of the sweep may set those above --setup, in the same units"
    slurm = sweep.add_argument_group("Slurm", about)
    add = partial(slurm.add_argument, default=argparse.SUPPRESS)
    add("--partition", metavar="NAME", help="partition")
    add("--cpus", type=int, metavar="N", help="CPUs per process; a job has one process per GPU")
    add("--mem-gb", type=float, metavar="GB", help="memory per job in gigabytes (of 1024 MB)")
    add("--hours", type=float, metavar="H", help="time limit in hours; a job is then requeued and resumes; 24")
    add("--modules", nargs="+", metavar="NAME", help="environment modules to load")
    add("--setup", nargs="+", metavar="LINE", help="shell commands to run before a job starts")
    add("--sbatch", nargs="+", metavar="KEY=VALUE", help="further options for sbatch")
    add("--poll", type=float, metavar="SECONDS", help="seconds between looks at the queue; at least 30")
    show_defaults(sweep, TrainConfig, JobSettings)


def _add_job_flags(job: argparse.ArgumentParser) -> None:
    job.add_argument("-c", "--config", required=True, metavar="YAML", help="configuration of the job")
    add = _add_training_flags(job, is_sweep=False)
    number, switch = partial(add, type=int, metavar="N"), partial(add, action="store_true")
    add("-o", "--output", "--dest", dest="save_dir", metavar="DIR", help="folder; by default outputs/<configuration>")
    add("--metrics-output", "--metrics-dest", metavar="FILE", help="file of the result; by default result.pkl in -o")
    add("--dataset", metavar="NAME", help="name or folder of the data set")
    add("--image-size", "--resize", type=_sides, metavar="N", help="side of input images, or height and width: 224,256")
    switch("--data-augmentation", help="the default augmentation: a flip and AutoAugment")
    rate = partial(add, type=float, metavar="RATE")
    rate("--lr", "--learning-rate", help="learning rate of the optimizer")
    rate("--wd", "--weight-decay", dest="weight_decay", help="weight decay of the optimizer")
    rate("--momentum", help="momentum of the optimizer")
    number("-b", "--batch-size", help="images per step and rank")
    number("--max-steps", help="stop after N steps")
    number("--print-freq", help="steps between log lines")
    start = partial(job.add_mutually_exclusive_group().add_argument, default=argparse.SUPPRESS, metavar="FILE")
    start("--load-from", "--weights", help="start from the weights in this file")
    start("--resume-from", "--resume", help="checkpoint to resume from; auto is the newest good one in -o")
    number("--start-epoch", help="treat the first N epochs as already done")
    add("--non-strict", action="store_false", dest="strict_load", help="load only the weights of --load-from that fit")
    switch("--test-only", help="test without training")
    switch("--save-checkpoints", help="save a checkpoint after each epoch")
    switch("--checkpoint-initial-model", help="test the network before the first epoch, too")
    number("--checkpoint-interval", help="steps between checkpoints within an epoch; with 0, only on a signal")
    number("--grad-accum-steps", help="batches per step, whose gradients add up")
    switch("--amp", help="mixed precision")
    add("--amp-dtype", choices=("float16", "bfloat16"), help="low precision of --amp; CPUs always use bfloat16")
    switch("--model-ema", help="keep a moving average of the weights, and test it too")
    rate("--model-ema-decay", help="decay of --model-ema")
    add("--no-eval-checkpoints", action="store_false", dest="eval_checkpoints", help="do not test after each epoch")
    switch("--unfrozen", help="train all parts")
    switch("--deterministic", help="use only deterministic algorithms")
    tracking = partial(add, metavar="NAME")
    tracking("--project", help="project in Weights & Biases; without one, nothing is logged there")
    tracking("--entity", help="Weights & Biases account or team")
    tracking("--group", help="Weights & Biases run group")
    tracking("--id", help="ID of the Weights & Biases run to resume")
    add("-v", "--verbose", action="count", help="log more; -vv logs every step")
    switch("-n", "--dry-run", default=False, help="only check everything and print the network, its cost and its data")
    about = "run three batches per rank, in the folder smoke of -o; torchrun accepts only the longer name"
    switch("--st", "--smoke-test", dest="smoke_test", default=False, help=about)
    show_defaults(job, Preprocessing, TrainConfig, JobSettings)


def _sides(text: str) -> int | list[int]:
    """A side, or a height and a width: `224`, `224,256` or `(224, 256)`."""
    try:
        sides = [int(side) for side in text.strip("()[]").split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a side, 224, or a height and a width, 224,256") from None
    return sides[0] if len(sides) == 1 else sides


job = Command(
    "stitchkit.assembly.train.run:run", "train an assembly of pretrained parts and adapters", _add_job_flags,
    resumes="continue from the newest checkpoint with --resume auto",
    check=lambda flags: check_flags(vars(flags)),
)  # fmt: skip
sweep = Command(
    "stitchkit.assembly.sweep.launch:run",
    "run all jobs of one file, one for each gap and stitcher, data set, seed or trial, and report the results",
    _add_sweep_flags,
    resumes=REPEAT,
    check="stitchkit.assembly.sweep.settings:check_sweep",
)

"""All benchmarks, one after the other, into `results/benchmarks.md`: `make bench`."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

import timm
import torch

from benchmarks.command import ROOT


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Args:
        what: What is measured, in words.
        command: Module and flags.
        target: What the figure is to reach.
        figure: Which figure of the benchmark's JSON; a ratio is to be at least the target, others at most.
    """

    what: str
    command: str
    target: float | None
    figure: str = "ratio"

    @property
    def name(self) -> str:
        """Name of the benchmark."""
        return self.command.split()[0].removeprefix("benchmarks.")

    @property
    def sign(self) -> str:
        """How the figure is to stand to the target."""
        return ">=" if self.figure.endswith("ratio") else "<="

    @property
    def needs_gpu(self) -> bool:
        """Whether it can be measured on a machine with a GPU only."""
        return "cuda" in self.command


ROWS = (
    Row("all 71 DeiT stitches, compute", "benchmarks.evaluate", 2.0),
    Row("all 35 digits stitches from files, whole command", "benchmarks.evaluate_files", 10),
    Row("start of all DeiT stitching layers", "benchmarks.initialise", 8),
    Row("FLOPs and params of all 71 DeiT stitches", "benchmarks.profile", 20),
    Row("training steps, DeiT-Ti/S", "benchmarks.train_step", 1.15),
    Row("one network composed of fragments", "benchmarks.compose", 30),
    Row("one step of scores over all fragments", "benchmarks.compose", 50, "step_ratio"),
    Row("memory of one network composed of fragments", "benchmarks.compose", 3, "peak_gb"),
    Row("latency of an extracted stitch", "benchmarks.extract", 1.01, "slowdown"),
    Row("all 71 DeiT stitches, compute, GPU", "benchmarks.evaluate --device cuda", 2.0),
    Row("training steps, DeiT-S/B, GPU", "benchmarks.train_step --device cuda", 2.0),
)
_AGREEMENT = {True: "agree", False: "**differ**", None: "not compared"}


def line(row: Row, found: Mapping[str, Any] | None) -> str:
    """A line of the table, in Markdown.

    Args:
        row: What it is about.
        found: The benchmark's JSON, or None where it was not measured.
    """
    cells = [row.what, "" if row.target is None else f"{row.figure} {row.sign} {row.target:g}"]
    if found is None or found[row.figure] is None:
        cells += ["not measured", "", "", ""]
    else:
        # Seconds are those of what the benchmark is about, not of its further figures.
        is_main = row.figure in ("ratio", "slowdown")
        seconds = [f"{found[way]:.4g} s" if is_main else "" for way in ("ours_s", "reference_s")]
        cells += [f"{row.figure} {found[row.figure]:.3f}", *seconds, _AGREEMENT[found["agree"]]]
    return "| " + " | ".join([*cells, f"`python -m {row.command}`"]) + " |"


def machine() -> str:
    """What the figures depend on, in words."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    device = f"{_cpu()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, {gpu}"
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, timm {timm.__version__}"
    return f"Machine: {device}. {versions}. {date.today().isoformat()}."


def kept(row: Row, before: str) -> str | None:
    """The line of a benchmark in a table that was made before, if that was on this machine on this day."""
    lines = before.splitlines()
    if machine() not in lines:
        return None
    ends = f"| {row.what} |", f"`python -m {row.command}` |"
    return next((one for one in lines if one.startswith(ends[0]) and one.endswith(ends[1])), None)


def document(lines: Sequence[str]) -> str:
    """The file with all lines: the machine, then the table."""
    return "\n".join(
        [
            "# Ours against a plain reference",
            "",
            "Made by `make bench`; `benchmarks/README.md` says what each line means and what the reference is.",
            machine(),
            "",
            "| what | target | measured | ours | reference | answers | command |",
            "| --- | --- | --- | --- | --- | --- | --- |",
            *lines,
            "",
        ]
    )


def _cpu() -> str:
    """Model of the CPU, where Linux tells it."""
    try:
        rows = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        rows = []
    return next((row.partition(":")[2].strip() for row in rows if row.startswith("model name")), platform.machine())


def _run(command: str, flags: Sequence[str]) -> Mapping[str, Any]:
    """Run a benchmark in a process of its own, show what it says and give its JSON."""
    done = subprocess.run([sys.executable, "-m", *command.split(), *flags], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    print(done.stdout, flush=True)
    if done.returncode not in (0, 1):  # 1: the answers differ, which is a result
        raise SystemExit(f"benchmarks: error: {command} ended with status {done.returncode}")
    found: Mapping[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Run all of them and write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="which, e.g. evaluate; others keep their figures of this day"
    )
    parser.add_argument("--quick", action="store_true", help="small work: figures without meaning, in minutes")
    parser.add_argument("--output", metavar="FILE", type=Path, default=ROOT / "results/benchmarks.md")
    options = parser.parse_args()
    flags = ["--quick"] if options.quick else []
    known = {row.name for row in ROWS}
    if wrong := [name for name in options.names if name not in known]:
        parser.error(f"there is no benchmark '{wrong[0]}'; there are {', '.join(sorted(known))}")
    chosen = set(options.names) or known
    before = options.output.read_text() if options.output.is_file() and not options.quick else ""
    run = cache(lambda command: _run(command, flags))  # several figures may be those of one run
    lines = []
    for row in ROWS:
        old = None if row.name in chosen else kept(row, before)
        is_possible = row.name in chosen and (torch.cuda.is_available() or not row.needs_gpu)
        lines.append(old or line(row, run(row.command) if is_possible else None))
    if options.quick:
        lines.append("\nQuick runs: small work, one round, no figures to go by.")
    options.output.write_text(document(lines))
    print(f"the table is {options.output}")


if __name__ == "__main__":
    main()

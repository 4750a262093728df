"""All benchmarks, one after the other, into `results/benchmarks.md`: `make bench`."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from functools import cache
from pathlib import Path
from typing import NamedTuple

import timm
import torch

from benchmarks.frame import ROOT
from stitchkit.measure.latency import processor

Found = Mapping[str, str | float | bool | None]
"""The JSON of a benchmark."""


class Row(NamedTuple):
    """One line of the table; its `figure` must be at least the `target` if it is a ratio, otherwise at most."""

    what: str
    command: str
    target: float
    figure: str = "ratio"

    @property
    def name(self) -> str:
        """Name of the benchmark."""
        return self.command.split()[0].removeprefix("benchmarks.")


ROWS = (
    Row("all 71 DeiT stitches, compute", "benchmarks.evaluate", 2.0),
    Row("all 35 digits stitches from files, whole command", "benchmarks.evaluate_files", 10),
    Row("start of all DeiT stitching layers", "benchmarks.initialise", 8),
    Row("FLOPs and params of all 71 DeiT stitches", "benchmarks.profile", 20),
    Row("training steps, DeiT-Ti/S", "benchmarks.train_step", 1.15),
    Row("training steps without labels, anchors frozen, not trained", "benchmarks.features", 1.3),
    Row("memory of these steps", "benchmarks.features", 1.5, "memory_ratio"),
    Row("one network composed of fragments", "benchmarks.compose", 30),
    Row("one step of scores over all fragments", "benchmarks.compose", 50, "step_ratio"),
    Row("memory of one network composed of fragments", "benchmarks.compose", 3, "peak_gb"),
    Row("latency of an extracted stitch", "benchmarks.extract", 1.01, "slowdown"),
    Row("all 71 DeiT stitches, compute, GPU", "benchmarks.evaluate --device cuda", 2.0),
    Row("training steps, DeiT-S/B, GPU", "benchmarks.train_step --device cuda", 2.0),
)
_AGREEMENT: dict[object, str] = {True: "agree", False: "**differ**", None: "not compared"}


def line(row: Row, found: Found | None) -> str:
    """A line of the table in Markdown; `found` is the benchmark's JSON, or None if it was not measured."""
    if found is None or found[row.figure] is None:
        measured = ["not measured", "", "", ""]
    else:
        # The seconds belong to the main figure, not to the further ones of the same run.
        is_main = row.figure in ("ratio", "slowdown")
        seconds = [f"{found[way]:.4g} s" if is_main else "" for way in ("ours_s", "reference_s")]
        measured = [f"{row.figure} {found[row.figure]:.3f}", *seconds, _AGREEMENT[found["agree"]]]
    sign = ">=" if row.figure.endswith("ratio") else "<="
    cells = [row.what, f"{row.figure} {sign} {row.target:g}", *measured, f"`python -m {row.command}`"]
    return "| " + " | ".join(cells) + " |"


def kept(row: Row, before: str) -> str | None:
    """The line of a benchmark in an earlier table, if that was made on this machine on this day."""
    lines = before.splitlines() if _machine() in before else []
    ends = f"| {row.what} |", f"`python -m {row.command}` |"
    return next((one for one in lines if one.startswith(ends[0]) and one.endswith(ends[1])), None)


def document(lines: Sequence[str]) -> str:
    """The page: the machine, then the table with these lines."""
    head = (
        "# Ours against a plain reference",
        "",
        "Made by `make bench`; `benchmarks/README.md` says what each line means and what the reference is.",
        _machine(),
        "",
        "| what | target | measured | ours | reference | answers | command |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    )
    return "\n".join([*head, *lines, ""])


def _machine() -> str:
    """The machine, the versions and the day that the figures depend on."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    device = f"{processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, {gpu}"
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, timm {timm.__version__}"
    return f"Machine: {device}. {versions}. {date.today().isoformat()}."


def _run(command: str, flags: Sequence[str]) -> Found:
    """Run a benchmark in a process of its own, show its output and return its JSON."""
    done = subprocess.run([sys.executable, "-m", *command.split(), *flags], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    print(done.stdout, flush=True)
    if done.returncode not in (0, 1):  # 1: the answers differ, which is a result
        raise SystemExit(f"benchmarks: error: {command} ended with status {done.returncode}")
    found: Found = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Run all of them and write the table."""
    known = sorted({row.name for row in ROWS})
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="which, such as evaluate; others keep their figures of today"
    )
    parser.add_argument("--quick", action="store_true", help="little work: meaningless figures, within minutes")
    parser.add_argument("--output", metavar="FILE", type=Path, default=ROOT / "results/benchmarks.md")
    options = parser.parse_args()
    if wrong := [name for name in options.names if name not in known]:
        parser.error(f"unknown benchmark '{wrong[0]}'; choose from {', '.join(known)}")
    flags = ["--quick"] if options.quick else []
    before = options.output.read_text() if options.output.is_file() and not options.quick else ""
    run = cache(lambda command: _run(command, flags))  # several lines may show figures of one run
    lines = []
    for row in ROWS:
        is_chosen = row.name in (options.names or known)
        old = None if is_chosen else kept(row, before)
        is_possible = is_chosen and (torch.cuda.is_available() or "cuda" not in row.command)
        lines.append(old or line(row, run(row.command) if is_possible else None))
    if options.quick:
        lines.append("\nQuick runs: little work, one round, meaningless figures.")
    options.output.write_text(document(lines))
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()

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
from typing import Any

import timm
import torch

from benchmarks.frame import ROOT
from benchmarks.rows import GPU_FILE, GPU_ROWS, ROWS, Found, Row, found_in, line
from stitchkit.display import counted
from stitchkit.measure.latency import processor

PAGE = ROOT / "results/benchmarks.md"
_MACHINE = "Machine: "


def kept(row: Row, before: str) -> str | None:
    """The line of a benchmark in an earlier table."""
    begin, end = row.ends
    return next((one for one in before.splitlines() if one.startswith(begin) and one.endswith(end)), None)


def document(about_cpu: str, lines: Sequence[str], gpu: Mapping[str, Any] | None) -> str:
    """The page: a machine, the table with its lines, and what `make bench-gpu` measured on this or another one."""
    found, on = (gpu["found"], gpu["on"]) if gpu else ({}, "")
    about = f"By `make bench-gpu`: {gpu['machine']}" if gpu else "On a GPU: not measured; `make bench-gpu` does it."
    parts = [f"- {name}: {said}" for name, said in gpu["parts"].items()] if gpu else []
    lines = [*lines, *(line(row, found.get(row.command), on) for row in GPU_ROWS)]
    head = (
        "# Ours against a plain reference",
        "",
        "Made by `make bench`; `benchmarks/README.md` says what each line means and what the reference is.",
        about_cpu,
        "",
        about,
        "",
        "| what | target | measured | ours | reference | answers | on | command |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    )
    return "\n".join([*head, *lines, *(["", "Parts of `make bench-gpu`:", "", *parts] if parts else []), ""])


def machine() -> str:
    """The machine and the versions that the figures depend on."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    cores, threads = counted(os.cpu_count() or 1, "core"), counted(torch.get_num_threads(), "thread")
    device = f"{processor()}, {cores}, {threads}, {gpu}"
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, timm {timm.__version__}"
    return f"{_MACHINE}{device}. {versions}."


def machine_of(page: str) -> str:
    """The machine of an earlier page, or this one if the page is empty."""
    return next((one for one in page.splitlines() if one.startswith(_MACHINE)), machine())


def put_gpu(page: Path, gpu: Mapping[str, Any]) -> None:
    """Put what `make bench-gpu` measured into a page, whose other lines stay."""
    before = page.read_text() if page.is_file() else ""
    page.write_text(document(machine_of(before), [kept(row, before) or line(row, None) for row in ROWS], gpu))


def _run(command: str, flags: Sequence[str]) -> Found:
    """Run a benchmark in a process of its own, show its output and return its JSON."""
    done = subprocess.run([sys.executable, "-m", *command.split(), *flags], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    print(done.stdout, flush=True)
    found = found_in(done.stdout)
    if found is None or done.returncode not in (0, 1):  # 1: the answers differ, which is a result
        raise SystemExit(f"benchmarks: error: {command} ended with status {done.returncode}")
    return found


def main() -> None:
    """Run all of them and write the table."""
    known = sorted({row.name for row in ROWS})
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="which, such as evaluate; others keep their figures")
    parser.add_argument("--quick", action="store_true", help="little work: meaningless figures, within minutes")
    parser.add_argument("--output", metavar="FILE", type=Path, default=PAGE)
    options = parser.parse_args()
    if wrong := [name for name in options.names if name not in known]:
        parser.error(f"unknown benchmark '{wrong[0]}'; choose from {', '.join(known)}")
    flags = ["--quick"] if options.quick else []
    before = options.output.read_text() if options.output.is_file() and not options.quick else ""
    if (other := machine_of(before)) != machine():
        print(
            f"the figures in {options.output} are of another machine or other versions, so they are not kept: {other}"
        )
        before = ""
    run = cache(lambda command: _run(command, flags))  # several lines may show figures of one run
    today, lines = date.today().isoformat(), []
    for row in ROWS:
        is_chosen = row.name in (options.names or known)
        old = None if is_chosen else kept(row, before)
        lines.append(old or line(row, run(row.command) if is_chosen else None, today))
    text = document(machine(), lines, json.loads(GPU_FILE.read_text()) if GPU_FILE.is_file() else None)
    if options.quick:
        text += "\nQuick runs: little work, one round, meaningless figures.\n"
    options.output.write_text(text)
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()

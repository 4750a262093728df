"""All that needs a GPU, in under nine minutes, with the Python that runs this; nothing is installed.

The benchmarks in each precision, the tests of `tests/gpu` and a short training run one after the other, each within a
time of its own. What was measured is written into results/gpu.json after each part; what failed or did not fit says
so there. At the end, its figures are put into the table of results/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.rows import GPU_FILE, found_in

_ROOT = Path(__file__).parent.parent
_BUDGET = 530.0
"""Seconds for all parts together, with what is left of nine minutes for their starts and ends."""
_PATIENCE = 10
"""How many times longer a dry run may take: it shows that the parts run, on machines of any speed."""


class TimedCommand(NamedTuple):
    """A command, and its limit in seconds."""

    command: str
    seconds: float


# What matters most first, since the last ones may not fit. On an H200 each took 70 to 92 % of its limit.
PARTS = (
    TimedCommand("benchmarks.evaluate --device cuda --precision bfloat16", 50),
    TimedCommand("benchmarks.train_step --device cuda --precision bfloat16", 95),
    TimedCommand("pytest -q -rs -p no:cacheprovider -W default -m gpu tests/gpu", 55),
    TimedCommand("benchmarks.training --device cuda --precision bfloat16", 75),
    TimedCommand("benchmarks.evaluate --device cuda", 50),
    TimedCommand("benchmarks.features --device cuda --precision bfloat16", 50),
    TimedCommand("benchmarks.train_step --device cuda", 90),
    TimedCommand("benchmarks.features --device cuda", 65),
)


def missing(requirements: Sequence[str]) -> list[str]:
    """What of some requirements, such as `torch>=2.8`, this Python lacks, in words."""
    found = []
    for requirement in requirements:
        name, _, least = requirement.partition(">=")
        try:
            has = version(name)
        except PackageNotFoundError:
            found.append(requirement)
            continue
        if _numbers(has) < _numbers(least):
            found.append(f"{requirement} (there is {has})")
    return found


def _numbers(text: str) -> list[int]:
    """The release of a version: of `2.8.0a0+7f1`, 2, 8 and 0."""
    release = re.match(r"[\d.]*", text)
    return [int(number) for number in release.group().split(".") if number] if release else []


def check(*, dry_run: bool) -> None:
    """End with one message if this Python cannot run the parts."""
    lines = (_ROOT / "requirements.txt").read_text().split()
    if lacks := missing([*lines, "pytest>=8.0"]):
        raise SystemExit(
            f"bench-gpu: error: {sys.executable} lacks {', '.join(lacks)}; nothing is installed here, so choose a "
            "Python that has them: make bench-gpu PYTHON=..."
        )
    import torch  # only now: it may be what is missing

    if not dry_run and not torch.cuda.is_available():
        built = f"torch {torch.__version__} is built for CUDA {torch.version.cuda}"
        raise SystemExit(
            f"bench-gpu: error: torch finds no GPU ({built}); run it on a machine with one, or rehearse it on the CPU: "
            "make bench-gpu ARGS=--dry-run"
        )


def run(command: str, seconds: float, *, dry_run: bool) -> tuple[str, dict[str, Any] | None]:
    """Run a part by its command; a dry run does little work.

    Returns:
        What came of it in words, and the JSON of a benchmark.
    """
    words = [sys.executable, "-m", *command.split()]
    if dry_run and command.startswith("benchmarks"):
        small = ["--stitch-config", str(_ROOT / "configs/digits_vit.json")]
        words += ["--quick", *([] if "training" in command else small)]
    there = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": there, **({"GPU_TESTS_ON_CPU": "1"} if dry_run else {})}
    # A session of its own, so that the processes that a part has started end with it.
    process = subprocess.Popen(
        words, cwd=_ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    try:
        output, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return f"not measured: stopped after {seconds:.0f} s", None
    print(output, flush=True)
    print(errors, file=sys.stderr, flush=True)
    if not command.startswith("benchmarks"):
        return f"{_last(output).strip('= ')} (status {process.returncode})", None
    found = found_in(output)
    if found is None or process.returncode not in (0, 1):  # 1: the answers differ, which is a result
        return f"failed with status {process.returncode}: {_last(errors) or 'no figures'}", None
    return found["work"], found


def _last(text: str) -> str:
    """The last line."""
    return next(reversed(text.strip().splitlines()), "")


def run_all(output: Path, *, dry_run: bool) -> bool:
    """Run the parts as long as there is time, and write the file after each; returns whether all went well."""
    from benchmarks.__main__ import machine

    patience = _PATIENCE if dry_run else 1
    end, fine = time.monotonic() + _BUDGET * patience, True
    about = machine() + (" Dry run on the CPU: little work, meaningless figures." if dry_run else "")
    today = date.today().isoformat()
    report: dict[str, Any] = {"machine": about, "on": today, "parts": {}, "found": {}}
    for part in PARTS:
        left, begin = end - time.monotonic(), time.monotonic()
        said, found = f"not measured: {max(left, 0):.0f} s were left", None
        if left > 10:
            seconds = min(part.seconds * patience, left)
            command = part.command.replace("cuda", "cpu") if dry_run else part.command
            print(f"== {command}, at most {seconds:.0f} s", flush=True)
            said, found = run(command, seconds, dry_run=dry_run)
        fine &= (found is not None and found["agree"] is not False) or "(status 0)" in said
        report["parts"][part.command] = f"{said}; {time.monotonic() - begin:.0f} s"
        if found is not None:
            report["found"][part.command] = found
        output.write_text(json.dumps(report, indent=1) + "\n")
        print(f"{part.command}: {report['parts'][part.command]}", flush=True)
    print(f"wrote {output}")
    return fine


def main() -> int:
    """Check this Python, run all parts, and write what they found."""
    parser = argparse.ArgumentParser(
        prog="make bench-gpu", usage="make bench-gpu [PYTHON=python3] [ARGS='...']", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Parts, with the limit of each in seconds:\n"
        + "\n".join(f"  {part.seconds:4}  {part.command}" for part in PARTS),
    )  # fmt: skip
    parser.add_argument(
        "--dry-run", action="store_true", help="all parts on the CPU with little work, to no file by default"
    )
    parser.add_argument("--output", metavar="FILE", type=Path, help=f"by default results/{GPU_FILE.name}")
    options = parser.parse_args()
    check(dry_run=options.dry_run)
    output = options.output or (Path(os.devnull) if options.dry_run else GPU_FILE)
    fine = run_all(output, dry_run=options.dry_run)
    if output == GPU_FILE:
        from benchmarks.__main__ import PAGE, put_gpu

        put_gpu(PAGE, json.loads(output.read_text()))
        print(f"wrote {PAGE}")
    return 0 if fine else 1


if __name__ == "__main__":
    raise SystemExit(main())

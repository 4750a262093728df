"""All stitches from image files, as whole commands: `stitchkit train --eval` against the published way."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path

import torch

from benchmarks.command import DIGITS, ROOT, Options, command, random_snnet
from benchmarks.timing import Check, Result, alternate
from stitchkit.data.digits import write_digits
from stitchkit.measure.ledger import Row, read_rows

_LEDGER = "stitches_res.txt"
_COPIES = 5
"""Of the 600 digits: with few images the benchmark would measure how fast Python starts."""


def measure(options: Options) -> Result:
    """Time both commands, each in a process of its own, on the same images and checkpoint."""
    model = random_snnet(options, slice(None))  # the commands build the whole configuration, so its checkpoint must fit
    num_stitches = 3 if options.quick else len(model.space)
    stitches = f"0-{num_stitches - 1}"
    numbers = count()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        data, checkpoint = place / "digits", place / "random.pth"
        write_digits(data)
        num_images = _copy_images(data / "validation", 1 if options.quick else _COPIES)
        torch.save({"state_dict": model.state_dict()}, checkpoint)

        def ours() -> list[Row]:
            run = f"ours{next(numbers)}"
            where = ["--output", str(place), "--experiment", run]
            what = ["--stitch_config", options.stitch_config, "--eval", "--resume", str(checkpoint)]
            some = ["--eval-stitches", stitches, "--device", "cpu"]
            return _ledger(["stitchkit", "train", str(data), *what, *some, *where], place / run / _LEDGER)

        def reference() -> list[Row]:
            ledger = place / f"reference{next(numbers)}.txt"
            inputs = [str(data), options.stitch_config, str(checkpoint)]
            return _ledger(["benchmarks.published_evaluation", *inputs, str(num_stitches), str(ledger)], ledger)

        ways = {"ours": ours, "reference": reference}
        seconds, rows = alternate(ways, rounds=3, quick=options.quick)
    checks = (
        _compared("acc1", rows, 1e-3),  # allows for the rounding of means, not for one image, which is 0.17
        _compared("flops", rows, 0),
    )
    return Result(
        "evaluate_files",
        f"{num_stitches} of {len(model.space)} stitches, {num_images} files, start of Python included, {options.label}",
        seconds,
        checks,
    )


def _copy_images(folder: Path, copies: int) -> int:
    """Copy each image of a folder until there are `copies` of it; returns the number of files."""
    images = list(folder.rglob("*.png"))
    for image in images:
        for number in range(1, copies):
            shutil.copyfile(image, image.with_name(f"{number}_{image.name}"))
    return copies * len(images)


def _ledger(command: Sequence[str], ledger: Path) -> list[Row]:
    """The rows that a Python module writes when it is run."""
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    return read_rows(ledger)


def _compared(key: str, rows: Mapping[str, list[Row]], tolerance: float) -> Check:
    pairs = list(zip(rows["ours"], rows["reference"], strict=True))
    assert all(ours["cfg_id"] == reference["cfg_id"] for ours, reference in pairs)
    difference = max(abs(ours[key] - reference[key]) for ours, reference in pairs)
    return Check(f"{key} of all rows, absolute", difference, tolerance)


if __name__ == "__main__":
    sys.exit(command(measure, __doc__, config=DIGITS))

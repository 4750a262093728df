"""All stitches from image files, as whole commands: `stitchkit train --eval` against the published way."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from itertools import count
from pathlib import Path

import torch

from benchmarks.frame import DIGITS, ROOT, Check, Options, Result, command, random_snnet
from stitchkit.data.demo import write_digits
from stitchkit.measure.ledger import Row, read_rows

_COPIES = 5
"""Of the 600 digits: with few images the benchmark would measure how fast Python starts."""


def measure(options: Options) -> Result:
    """Time both commands, each in a process of its own, on the same images and checkpoint."""
    model = random_snnet(options, slice(None))  # the commands build the whole configuration, so its checkpoint must fit
    num_stitches = 3 if options.quick else len(model.space)
    numbers = count()
    with tempfile.TemporaryDirectory() as folder:
        data, checkpoint = f"{folder}/digits", f"{folder}/random.pth"
        write_digits(Path(data))
        images = list(Path(data, "validation").rglob("*.png"))
        copies = 1 if options.quick else _COPIES
        for image in images:
            for number in range(1, copies):
                shutil.copyfile(image, image.with_name(f"{number}_{image.name}"))
        torch.save({"state_dict": model.state_dict()}, checkpoint)

        def ours() -> list[Row]:
            run = f"ours{next(numbers)}"
            where = ["--output", folder, "--experiment", run, "--device", "cpu"]
            what = ["--stitch-config", options.stitch_config, "--eval", "--resume", checkpoint]
            some = ["--eval-stitches", f"0-{num_stitches - 1}"]
            return _ledger(f"{folder}/{run}/stitches_res.txt", "stitchkit", "train", data, *what, *some, *where)

        def reference() -> list[Row]:
            ledger = f"{folder}/reference{next(numbers)}.txt"
            inputs = [data, options.stitch_config, checkpoint, str(num_stitches), ledger]
            return _ledger(ledger, "benchmarks.published_evaluation", *inputs)

        seconds, rows = options.alternate({"ours": ours, "reference": reference}, rounds=3)
    pairs = list(zip(rows["ours"], rows["reference"], strict=True))
    assert all(one["cfg_id"] == other["cfg_id"] for one, other in pairs)
    # The tolerance of accuracies allows for the rounding of means, not for one image, which is 0.17.
    checks = [
        Check(f"{key} of all rows, absolute", max(abs(one[key] - other[key]) for one, other in pairs), tolerance)
        for key, tolerance in (("acc1", 1e-3), ("flops", 0))
    ]
    return Result(
        "evaluate_files",
        f"{num_stitches} of {len(model.space)} stitches, {copies * len(images)} files, start of Python included, "
        f"{options.label}",
        seconds,
        tuple(checks),
    )


def _ledger(ledger: str, *command: str) -> list[Row]:
    """The rows that a Python module writes to a ledger when it is run."""
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    return read_rows(Path(ledger))


if __name__ == "__main__":
    raise SystemExit(command(measure, __doc__, config=DIGITS))

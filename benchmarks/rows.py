"""The lines of the table of benchmarks; needs no torch, so that `benchmarks.gpu` can say that it is missing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

GPU_FILE = Path(__file__).parent.parent / "results/gpu.json"
"""What `make bench-gpu` measured."""

Found = Mapping[str, str | float | bool | None]
"""The JSON of a benchmark."""

_AT_MOST = ("slowdown", "peak_gb")
_AGREEMENT: dict[object, str] = {True: "agree", False: "**differ**", None: "not compared"}


class Row(NamedTuple):
    """One line of the table: its `figure` must be at least the `target`, or at most if less is better."""

    what: str
    command: str
    target: float
    figure: str = "ratio"

    @property
    def name(self) -> str:
        """Name of the benchmark."""
        return self.command.split()[0].removeprefix("benchmarks.")

    @property
    def ends(self) -> tuple[str, str]:
        """Begin and end of its line, which identify an earlier one."""
        return f"| {self.what} |", f"`python -m {self.command}` |"


_EVALUATE, _TRAIN = "benchmarks.evaluate", "benchmarks.train_step"
_LOW, _GPU = "--precision bfloat16", "--device cuda"

ROWS = (
    Row("all 71 DeiT stitches, compute", _EVALUATE, 2.0),
    Row("share of the CPU's limit", _EVALUATE, 0.9, "share"),
    Row("all 71 DeiT stitches, bfloat16 against float32", f"{_EVALUATE} {_LOW}", 2.2, "ratio_float32"),
    Row("share of the CPU's limit in bfloat16", f"{_EVALUATE} {_LOW}", 0.75, "share"),
    Row("all 35 digits stitches from files, whole command", "benchmarks.evaluate_files", 10),
    Row("start of all DeiT stitching layers", "benchmarks.initialise", 8),
    Row("FLOPs and params of all 71 DeiT stitches", "benchmarks.profile", 20),
    Row("training steps, DeiT-Ti/S", _TRAIN, 1.15),
    Row("share of the CPU's limit in these steps", _TRAIN, 0.8, "share"),
    Row("training steps, DeiT-Ti/S, bfloat16 against float32", f"{_TRAIN} {_LOW}", 2.0, "ratio_float32"),
    Row("share of the CPU's limit in these steps in bfloat16", f"{_TRAIN} {_LOW}", 0.6, "share"),
    Row("training steps without labels, anchors frozen, not trained", "benchmarks.features", 1.3),
    Row("memory of these steps", "benchmarks.features", 1.5, "memory_ratio"),
    Row("one network composed of fragments", "benchmarks.compose", 30),
    Row("one step of scores over all fragments", "benchmarks.compose", 50, "step_ratio"),
    Row("memory of one network composed of fragments", "benchmarks.compose", 3, "peak_gb"),
    Row("latency of an extracted stitch", "benchmarks.extract", 1.01, "slowdown"),
)
GPU_ROWS = (
    Row("all 71 DeiT stitches, compute, GPU", f"{_EVALUATE} {_GPU}", 2.0),
    Row("share of the GPU's limit", f"{_EVALUATE} {_GPU}", 0.9, "share"),
    Row("all 71 DeiT stitches, bfloat16 against float32, GPU", f"{_EVALUATE} {_GPU} {_LOW}", 2.2, "ratio_float32"),
    Row("share of the GPU's limit in bfloat16", f"{_EVALUATE} {_GPU} {_LOW}", 0.75, "share"),
    Row("training steps, DeiT-S/B, GPU", f"{_TRAIN} {_GPU} {_LOW}", 2.0),
    Row("share of the GPU's limit in these steps in bfloat16", f"{_TRAIN} {_GPU} {_LOW}", 0.6, "share"),
    Row("training steps, DeiT-S/B, float32, GPU", f"{_TRAIN} {_GPU}", 1.15),
    Row("share of the GPU's limit in these steps", f"{_TRAIN} {_GPU}", 0.8, "share"),
    Row("training steps without labels, frozen anchors, GPU", f"benchmarks.features {_GPU} {_LOW}", 1.3),
    Row("memory of these steps, GPU", f"benchmarks.features {_GPU} {_LOW}", 1.5, "memory_ratio"),
    Row("the same in float32, GPU", f"benchmarks.features {_GPU}", 1.3),
    Row("memory in float32, GPU", f"benchmarks.features {_GPU}", 1.5, "memory_ratio"),
)


def found_in(output: str) -> dict[str, Any] | None:
    """The JSON of a benchmark in what it printed: the last line that is a JSON object, or None if there is none."""
    for one in reversed(output.splitlines()):
        if one.startswith("{"):  # other lines may follow, such as those of a library that ends
            try:
                found: dict[str, Any] = json.loads(one)
            except json.JSONDecodeError:
                continue
            return found
    return None


def line(row: Row, found: Found | None, on: str = "") -> str:
    """A line of the table in Markdown: `found`, the benchmark's JSON, of a day, or None if it was not measured."""
    if found is None or found[row.figure] is None:
        measured = ["not measured", "", "", "", ""]
    else:
        # The seconds belong to the main figure, not to the further ones of the same run.
        is_main = row.figure in ("ratio", "slowdown")
        seconds = [f"{found[way]:.4g} s" if is_main else "" for way in ("ours_s", "reference_s")]
        measured = [f"{row.figure} {found[row.figure]:.3f}", *seconds, _AGREEMENT[found["agree"]], on]
    sign = "<=" if row.figure in _AT_MOST else ">="
    cells = [row.what, f"{row.figure} {sign} {row.target:g}", *measured, f"`python -m {row.command}`"]
    return "| " + " | ".join(cells) + " |"

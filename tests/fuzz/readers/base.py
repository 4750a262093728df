"""A reader of files, with good files for it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stitchkit.settings.files import read_settings_file
from tests.fuzz.inputs import Dump, Seed, in_lines, in_yaml
from tests.support import ROOT

JSON: Sequence[Dump] = (json.dumps,)
LINES: Sequence[Dump] = (in_lines,)
SETTINGS: Sequence[Dump] = (in_yaml, json.dumps)  # JSON is YAML


class Reader(NamedTuple):
    """A reader of one kind of file.

    Args:
        file: The place that it reads, in an empty folder.
        seeds: Good content, or what prepares the folder and gives it.
        read: Reads the file.
        wrap: The bytes of the file around the fuzzed content.
    """

    file: str
    seeds: Sequence[Seed] | Callable[[Path], Sequence[Seed]]
    read: Callable[[Path], object]
    wrap: Callable[[bytes], bytes] = bytes

    def placed(self, folder: Path) -> tuple[Path, Sequence[Seed]]:
        """Prepare a folder; the place of the file in it, and good content."""
        path = folder / self.file
        path.parent.mkdir(exist_ok=True)
        return path, self.seeds(folder) if callable(self.seeds) else self.seeds


def shipped(pattern: str, dumps: Sequence[Dump] = SETTINGS) -> list[Seed]:
    """Configurations of the project, as data."""
    return [Seed(read_settings_file(file), dumps) for file in sorted(ROOT.glob(f"configs/{pattern}"))]


def arguments(path: Path) -> list[str]:
    """Arguments as the system hands them over: without NUL, and what is not text as lone surrogates."""
    return path.read_bytes().replace(b"\0", b"").decode(errors="surrogateescape").split("\n")


_LATENCY = {
    "latency_ms": 2.0, "images_per_s": 500.0, "latency_reliable": True, "latency_spread_percent": 1.0,
    "latency_batch_size": 1, "latency_device": "cpu", "latency_threads": 2, "latency_precision": "float32",
}  # fmt: skip
ROWS: list[dict[str, Any]] = [
    {"cfg_id": 0, "stitch": "ti[0:3]", "flops": 10, "params": 5, "acc1": 50.0, "acc5": 80.0, "loss": 1.0, **_LATENCY},
    {"cfg_id": 3, "stitch": "ti[0:1] > s[1:3]", "flops": 20, "params": 7, "acc1": 60.0, "acc5": 90.0, "loss": 0.5},
]
"""The rows of a ledger."""

"""The suffixes of exported files, which commands check before they import torch."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stitchkit.errors import InputError, unknown
from stitchkit.optional import check_installed
from stitchkit.parser import new_file

About = Mapping[str, Any]
"""The description of a stitch, or that of a StitchNet network; both have `input` with `input_size`."""


_PACKAGES: dict[str, tuple[str, ...]] = {
    ".safetensors": (), ".onnx": ("onnx", "onnxruntime", "onnxscript"), ".pt2": ()
}  # fmt: skip
"""By the suffix of a file, the packages beyond the core that it needs."""
_RUNTIMES = (
    ("1.7", 13, 7), ("1.8", 14, 7), ("1.9", 15, 8), ("1.11", 16, 8), ("1.12", 17, 8), ("1.14", 18, 8), ("1.15", 19, 8),
    ("1.16", 19, 9), ("1.17", 20, 9), ("1.18", 21, 10),
)  # fmt: skip
"""Versions of ONNX Runtime, each with the latest opset and format version that it reads.

Source: its page on compatibility, https://onnxruntime.ai/docs/reference/compatibility.html
"""


def oldest_runtime(path: str | Path) -> str:
    """The opset of an ONNX file and the oldest ONNX Runtime that reads it, in words; by default the installed one."""
    import onnx
    import onnxruntime

    model = onnx.load(path, load_external_data=False)
    (opset,) = (each.version for each in model.opset_import if each.domain in ("", "ai.onnx"))
    readers = (version for version, most, form in _RUNTIMES if most >= opset and form >= model.ir_version)
    return f"opset {opset}, read by ONNX Runtime {next(readers, onnxruntime.__version__)} and newer"


def suffix_of(path: str | Path, *, int8: bool = False, opset: int | None = None) -> str:
    """The suffix of a file, if it can be written here; only ONNX files have an opset and can be in int8."""
    suffix = Path(path).suffix
    if suffix not in _PACKAGES:
        raise unknown("suffix of an export", suffix or str(path), _PACKAGES)
    if int8 and suffix != ".onnx":
        raise InputError(f"int8 is for .onnx files, not {suffix}; give a name that ends with .onnx, or omit --int8")
    if opset is not None and suffix != ".onnx":
        raise InputError(f"--opset is for .onnx files, not {suffix}; give a name that ends with .onnx, or omit --opset")
    check_installed(_PACKAGES[suffix], "ship", f"a {suffix} file")
    return suffix


def check_output(flags: argparse.Namespace) -> None:
    """Check the file that `stitchkit export` will write: a wrong suffix must not cost the user a wait."""
    suffix_of(flags.output, int8=flags.int8, opset=flags.opset)
    new_file(flags.output)

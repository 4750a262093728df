"""Suffixes of exported files, which commands check before they import torch."""

from __future__ import annotations

from pathlib import Path

from stitchkit.errors import InputError, unknown
from stitchkit.optional import check_installed

PACKAGES = {".safetensors": (), ".onnx": ("onnx", "onnxruntime", "onnxscript"), ".pt2": ()}
"""The packages beyond the core that each kind of file needs."""


def check_suffix(path: str | Path, *, int8: bool = False) -> str:
    """The suffix of a file, which must be that of a kind that can be written here; only ONNX files can be in int8."""
    suffix = Path(path).suffix
    if suffix not in PACKAGES:
        raise unknown("suffix of an export", suffix or str(path), PACKAGES)
    if int8 and suffix != ".onnx":
        raise InputError(f"int8 is for .onnx files, not {suffix}; give a name that ends with .onnx, or omit --int8")
    check_installed(PACKAGES[suffix], "ship", f"a {suffix} file")
    return suffix

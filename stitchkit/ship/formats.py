"""The suffixes of exported files, which commands check before they import torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stitchkit.errors import InputError, unknown
from stitchkit.optional import check_installed

About = Mapping[str, Any]
"""The description of a stitch, or that of a StitchNet network; both have `input` with `input_size`."""


_PACKAGES: dict[str, tuple[str, ...]] = {
    ".safetensors": (),
    ".onnx": ("onnx", "onnxruntime", "onnxscript"),
    ".pt2": (),
}
"""By the suffix of a file, the packages beyond the core that it needs."""


def suffix_of(path: str | Path, *, int8: bool = False) -> str:
    """The suffix of a file, if it can be written here; only ONNX files can be in int8."""
    suffix = Path(path).suffix
    if suffix not in _PACKAGES:
        raise unknown("suffix of an export", suffix or str(path), _PACKAGES)
    if int8 and suffix != ".onnx":
        raise InputError(f"int8 is for .onnx files, not {suffix}; give a name that ends with .onnx, or omit --int8")
    check_installed(_PACKAGES[suffix], "ship", f"a {suffix} file")
    return suffix

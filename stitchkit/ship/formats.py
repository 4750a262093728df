"""The kinds of exported files, which commands check before they import torch."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from stitchkit.errors import InputError, unknown
from stitchkit.optional import check_installed

if TYPE_CHECKING:
    from torch import nn

_FILES = "stitchkit.ship.stitch_files"

About = Mapping[str, Any]
"""The description of a stitch, or that of a StitchNet network; both have `input` with `input_size`."""


class Format(NamedTuple):
    """One kind of file.

    Args:
        writer: The function of `stitchkit.ship.stitch_files` that writes it; by name, because that imports torch.
        reader: The one that reads it again for the check.
        packages: The packages beyond the core that it needs.
    """

    writer: str
    reader: str
    packages: tuple[str, ...] = ()

    def write(self, net: nn.Module, about: About, draft: Path) -> None:
        """Write a network with its description."""
        getattr(import_module(_FILES), self.writer)(net, about, draft)

    def read(self, path: Path) -> nn.Module:
        """The network of a file."""
        net: nn.Module = getattr(import_module(_FILES), self.reader)(path)
        return net


FORMATS = {
    ".safetensors": Format("write_safetensors", "load_stitch"),
    ".onnx": Format("write_onnx", "read_onnx", ("onnx", "onnxruntime", "onnxscript")),
    ".pt2": Format("write_program", "read_program"),
}


def format_of(path: str | Path, *, int8: bool = False) -> Format:
    """The kind of a file by its suffix, if it can be written here; only ONNX files can be in int8."""
    suffix = Path(path).suffix
    if suffix not in FORMATS:
        raise unknown("suffix of an export", suffix or str(path), FORMATS)
    if int8 and suffix != ".onnx":
        raise InputError(f"int8 is for .onnx files, not {suffix}; give a name that ends with .onnx, or omit --int8")
    check_installed(FORMATS[suffix].packages, "ship", f"a {suffix} file")
    return FORMATS[suffix]

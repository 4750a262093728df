"""The files that a stitch is exported to: safetensors, ONNX and torch.export's, each with what it is inside."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import nn

from stitchkit.errors import InputError, one_line, unknown
from stitchkit.networks.weights import load_content
from stitchkit.ship.description import build

About = Mapping[str, Any]
_KEY = "stitchkit"


class Format(NamedTuple):
    """One kind of file.

    Args:
        write: Writes a network and what it is.
        read: Reads a file that this process has written, for the check.
        packages: What it needs beyond the core.
    """

    write: Callable[[nn.Module, About, Path], None]
    read: Callable[[Path], nn.Module]
    packages: tuple[str, ...] = ()


def format_of(path: str | Path) -> Format:
    """The kind of file that a suffix means.

    Raises:
        InputError: If there is none, or a package that it needs is missing.
    """
    suffix = Path(path).suffix
    if suffix not in FORMATS:
        raise unknown("suffix of an export", suffix or str(path), FORMATS)
    if missing := [name for name in FORMATS[suffix].packages if find_spec(name) is None]:
        raise InputError(f"a {suffix} file needs {', '.join(missing)}; pip install 'stitchkit[ship]'")
    return FORMATS[suffix]


def load_stitch(path: str | Path) -> nn.Module:
    """The network of an exported `.safetensors` file, in evaluation mode.

    It is built from timm's classes alone; nothing is fetched, nothing in the file is executed, and of the SN-Net only
    the anchors on the route are made. How images are prepared for it is in its `pretrained_cfg`, where
    `timm.data.resolve_model_data_config` looks; what else is known of it in its `about`.

    Args:
        path: The file.

    Raises:
        InputError: If the file is missing, damaged, or no export of a stitch.
    """
    path = Path(path)
    if not path.is_file():
        found = "is not a file" if path.exists() else "does not exist"
        raise InputError(f"export '{path}' {found}; check the path")
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get(_KEY, "null"))
        weights = load_file(path)
    except Exception as error:  # a garbled file can make the reader raise anything
        raise InputError(
            f"'{path}' is not a safetensors file, or is damaged ({one_line(error)}); export it again"
        ) from error
    if not isinstance(about, dict):
        raise InputError(
            f"'{path}' is no exported stitch; make one by stitchkit export, or use stitchkit.load_checkpoint"
        )
    try:
        net = build(about)
    except InputError as error:
        raise InputError(f"'{path}' cannot be used: {error}") from error
    load_content(net, weights, path)
    net.about = about  # type: ignore[assignment]
    return net.eval()


class _Runner(nn.Module):
    """A function of images as a module, so that it is run and timed as others are."""

    def __init__(self, run: Callable[[torch.Tensor], torch.Tensor]):
        super().__init__()
        self._run = run

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._run(x)


def _write_safetensors(net: nn.Module, about: About, draft: Path) -> None:
    weights = {name: value.contiguous() for name, value in net.state_dict().items()}
    draft.write_bytes(save(weights, metadata={"format": "pt", _KEY: json.dumps(about)}))


_BATCH = ({0: torch.export.Dim("batch", min=1)},)
"""The sizes of the input that may vary."""


def _trace(net: nn.Module, about: About) -> torch.export.ExportedProgram:
    """The network as a program over batches of any size, without a trace of this machine's files."""
    net.requires_grad_(False)
    example = torch.zeros(2, *about["input"]["input_size"])  # a batch of one would be taken for the only size
    with torch.no_grad():
        net(example)  # timm's LeViT keeps its attention biases from the first run on, which is not to be traced
        program = torch.export.export(net, (example,), dynamic_shapes=_BATCH)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    return program


def _write_program(net: nn.Module, about: About, draft: Path) -> None:
    torch.export.save(_trace(net, about), draft, extra_files={f"{_KEY}.json": json.dumps(about)})


def _read_program(path: Path) -> nn.Module:
    network = torch.export.load(path).module()
    return _Runner(lambda x: network(x))  # hidden in a function: such a network has no modes to be switched


def _write_onnx(net: nn.Module, about: About, draft: Path) -> None:
    import onnx_ir

    logging.getLogger("onnxscript").setLevel(logging.WARNING)  # it tells each node that it simplifies
    logging.getLogger("onnx_ir").setLevel(logging.WARNING)
    program = torch.onnx.export(
        _trace(net, about),
        dynamo=True,
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=_BATCH,
        verbose=False,
    )
    assert program is not None, "there is one where no file is named"
    onnx_ir.passes.common.ClearMetadataAndDocStringPass()(program.model)
    program.model.metadata_props[_KEY] = json.dumps(about)
    program.save(draft, external_data=False)


def _read_onnx(path: Path) -> nn.Module:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()  # as many as the network that it is compared with
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return _Runner(lambda x: torch.from_numpy(session.run(["logits"], {"images": x.numpy()})[0]))


FORMATS = {
    ".safetensors": Format(_write_safetensors, load_stitch),
    ".onnx": Format(_write_onnx, _read_onnx, ("onnx", "onnxruntime", "onnxscript")),
    ".pt2": Format(_write_program, _read_program),
}

"""Exported files of stitches: safetensors, ONNX and torch.export's, each with its description inside."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeAlias, cast

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import nn

from stitchkit.errors import InputError, one_line, prefixed
from stitchkit.model.heads.route_head import POOLED, TOKENS
from stitchkit.model.route_network import ExtractedRoute, RouteNetwork
from stitchkit.networks.weights import load_content
from stitchkit.settings.files import unique_keys
from stitchkit.ship.description import build, gives_features, output_name
from stitchkit.ship.formats import About, suffix_of

_KEY = "stitchkit"


Output: TypeAlias = torch.Tensor | dict[str, torch.Tensor]
"""What a file gives for images: logits, or several features by name."""


def load_stitch(path: str | Path) -> ExtractedRoute:
    """The network of an exported `.safetensors` file, in evaluation mode.

    It is built from timm's classes: nothing is downloaded or executed, and only the anchors on the route are built. Its
    `pretrained_cfg` is for `timm.data.resolve_model_data_config`; its `about` is the whole description.

    Raises:
        InputError: If the file is missing, damaged, or not an exported stitch.
    """
    path = _existing(path)
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get(_KEY, "null"), object_pairs_hook=unique_keys)
        weights = load_file(path)
    except Exception as error:  # a garbled file can make the reader raise anything
        raise InputError(f"'{path}' is not a safetensors file, or damaged ({one_line(error)}); export again") from error
    if not isinstance(about, dict):
        raise InputError(f"'{path}' is not an exported stitch; use stitchkit export, or stitchkit.load_checkpoint")
    with prefixed(f"'{path}' cannot be used: "):
        net = build(about)
    load_content(net, weights, path)
    net.about = about
    return net.eval()


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file():
        fault = "is not a file" if path.exists() else "does not exist"
        raise InputError(f"export '{path}' {fault}; check the path")
    return path


def open_exported(path: str | Path) -> tuple[nn.Module, About]:
    """The network of an exported `.safetensors` or `.onnx` file on the CPU, and its description if it has one."""
    if Path(path).suffix not in FORMATS:
        raise InputError(
            f"'{path}' is not a .safetensors or .onnx file; give a file of stitchkit export, or a checkpoint by "
            "--resume with --stitch-config and --cfg-id"
        )
    suffix, path = suffix_of(path), _existing(path)
    if suffix == ".pt2":
        raise InputError(f"'{path}' could run code when it is read; export the stitch as .safetensors or .onnx")
    try:
        network = FORMATS[suffix].read(path)
    except InputError:
        raise
    except Exception as error:  # runtimes raise many kinds
        raise InputError(f"'{path}' cannot be read ({one_line(error)}); export it again") from error
    about = getattr(network, "about", None)
    return network, about if isinstance(about, dict) else {}


class Runner(nn.Module):
    """A function of images as a module, which can be run and timed like others, with its description if known."""

    def __init__(self, run: Callable[[torch.Tensor], Output], about: object = None):
        super().__init__()
        self._run = run
        self.about = about

    def forward(self, x: torch.Tensor) -> Output:
        """The function's result."""
        return self._run(x)


class _Features(nn.Module):
    """A network without classes as its files are: it gives all features by name."""

    def __init__(self, net: RouteNetwork, about: object):
        super().__init__()
        self.net = net
        self.about = about

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """The pooled feature, and what it is pooled from."""
        tokens = self.net.forward_features(x)
        return {POOLED: self.net.forward_head(tokens), TOKENS: tokens}


def as_in_files(net: nn.Module, about: About) -> nn.Module:
    """A network with the outputs that its files have."""
    return _Features(cast(RouteNetwork, net), about) if gives_features(about) else net


def write_safetensors(net: nn.Module, about: About, draft: Path) -> None:
    """Write the weights, with the description as metadata."""
    weights = {name: value.contiguous() for name, value in net.state_dict().items()}
    draft.write_bytes(save(weights, metadata={"format": "pt", _KEY: json.dumps(about)}))


_BATCH = ({0: torch.export.Dim("batch", min=1)},)  # batches of any size


def _trace(net: nn.Module, about: About) -> torch.export.ExportedProgram:
    """The network as a program for batches of any size, without paths of this machine."""
    net = as_in_files(net.requires_grad_(False), about)
    example = torch.zeros(2, *about["input"]["input_size"])  # torch.export would treat a batch of one as a constant
    with torch.no_grad():
        net(example)  # timm's LeViT caches its attention biases in the first run, which a trace must not store
        program = torch.export.export(net, (example,), dynamic_shapes=_BATCH)
    for node in program.graph.nodes:  # stack traces contain paths of this machine
        node.meta.pop("stack_trace", None)
    return program


def read_safetensors(path: Path) -> nn.Module:
    """The network of a file, with the outputs that its other files have."""
    net = load_stitch(path)
    return as_in_files(net, net.about)


def write_program(net: nn.Module, about: About, draft: Path) -> None:
    """Write a program of `torch.export`."""
    torch.export.save(_trace(net, about), draft, extra_files={f"{_KEY}.json": json.dumps(about)})


def read_program(path: Path) -> nn.Module:
    """The network of a program that was just written; reading one may run code."""
    network = torch.export.load(path).module()
    return Runner(lambda x: network(x))  # in a function, because exported programs raise if their mode is changed


def write_onnx(net: nn.Module, about: About, draft: Path, *, opset: int | None = None) -> None:
    """Write an ONNX file, with the description as metadata; a lower `opset` than torch's own is for older readers."""
    import onnx_ir
    from onnx.helper import find_min_ir_version_for, make_opsetid

    logging.getLogger("onnxscript").setLevel(logging.ERROR)  # it logs every node that it simplifies or leaves as it is
    logging.getLogger("onnx_ir").setLevel(logging.WARNING)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns that a lower opset may fail, which is checked
    program = torch.onnx.export(
        _trace(net, about),
        dynamo=True,
        input_names=["images"],
        output_names=[POOLED, TOKENS] if gives_features(about) else [output_name(about)],
        dynamic_shapes=_BATCH,
        verbose=False,
        opset_version=opset,
    )
    assert program is not None, "torch.onnx.export returns the program unless it writes a file"
    if opset is not None:
        # torch returns a network that it cannot convert in another opset.
        if (made := program.model.opset_imports[""]) != opset:
            raise InputError(f"--opset {opset} lacks operators of this network; give a higher one, such as {made}")
        program.model.ir_version = find_min_ir_version_for([make_opsetid("", opset)])
    onnx_ir.passes.common.ClearMetadataAndDocStringPass()(program.model)
    program.model.metadata_props[_KEY] = json.dumps(about)
    program.save(draft, external_data=False)


def read_onnx(path: Path) -> nn.Module:
    """The network of an ONNX file, run by onnxruntime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()  # as for the SN-Net, for a fair latency
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    text = session.get_modelmeta().custom_metadata_map.get(_KEY, "null")
    about = json.loads(text, object_pairs_hook=unique_keys)
    names = [output.name for output in session.get_outputs()]

    def run(x: torch.Tensor) -> Output:
        outputs = [torch.from_numpy(value) for value in session.run(None, {"images": x.cpu().numpy()})]
        return outputs[0] if len(outputs) == 1 else dict(zip(names, outputs, strict=True))

    return Runner(run, about)


class Format(NamedTuple):
    """The functions that write a network with its description, and read it again."""

    write: Callable[..., None]
    read: Callable[[Path], nn.Module]


FORMATS = {
    ".safetensors": Format(write_safetensors, read_safetensors),
    ".onnx": Format(write_onnx, read_onnx),
    ".pt2": Format(write_program, read_program),
}

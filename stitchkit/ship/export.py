"""One stitch as a file that runs without its SN-Net, checked against it before the file appears."""

from __future__ import annotations

import copy
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from stitchkit.errors import InputError, one_line
from stitchkit.files import sync
from stitchkit.measure.latency import Latency, latencies
from stitchkit.model.snnet import SNNet
from stitchkit.networks.mode import evaluating
from stitchkit.parser import new_file
from stitchkit.ship.description import TOKENS, gives_features, is_dense, output_name
from stitchkit.ship.formats import About, oldest_runtime, suffix_of
from stitchkit.ship.stitch_files import FORMATS, Runner

TOLERANCE, INT8_TOLERANCE = 1e-4, 0.25
"""Largest accepted difference of logits or features, as a share of the largest one if that is above 1."""
INT8_AGREEMENT = 0.9
"""Smallest accepted share of images on which a file in int8 predicts the same class.

Both limits for int8 are chosen to refuse files that are broken; nothing measured decides them.
"""

_SECONDS = 1.0  # longest time to measure latencies, which are only printed


@dataclass(frozen=True)
class Difference:
    """How much an output of a file differs from that of its SN-Net.

    Args:
        largest: The largest difference, or NaN.
        of: The largest output of the SN-Net, in absolute value.
    """

    largest: float = 0.0
    of: float = 0.0

    def and_of(self, found: torch.Tensor, expected: torch.Tensor) -> Difference:
        """This, with the outputs for further images."""
        # torch's max keeps NaN; Python's would drop it, and a broken file would agree.
        largest = float(torch.tensor([self.largest, (found - expected).abs().max()]).max())
        return Difference(largest, max(self.of, float(expected.abs().max())))


@dataclass(frozen=True)
class Report:
    """The comparison of a file with its SN-Net on some images; sizes in bytes, latencies of one image.

    Args:
        differences: By the names of the outputs: `logits`, or `pooled` and `tokens`, or `depth`.
        reader: Of an ONNX file, its opset and the oldest ONNX Runtime that reads it, in words.
    """

    differences: Mapping[str, Difference]
    same_top1: int | None
    images: int
    snnet_bytes: int
    file_bytes: int
    snnet_latency: Latency
    file_latency: Latency
    reader: str = ""


def export(
    model: SNNet,
    stitch: int,
    path: str | Path,
    images: torch.Tensor,
    about: About,
    *,
    calibration: torch.Tensor | None = None,
    opset: int | None = None,
) -> Report:
    """Write one stitch to a file, which appears only if it agrees with the SN-Net.

    Args:
        path: The file; its suffix, `.safetensors`, `.onnx` or `.pt2`, selects the format.
        calibration: Other prepared images, with whose activations an `.onnx` file is quantised to int8.
        opset: Of an `.onnx` file, the set of operators, for an older reader; by default torch's own.
    """
    if calibration is not None:
        about = {**about, "precision": "int8"}
    form, path = FORMATS[suffix_of(path, int8=calibration is not None, opset=opset)], new_file(str(path))
    options = {} if opset is None else {"opset": opset}
    with evaluating(model), tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        draft = Path(folder) / path.name  # on the same disk, so that it can be renamed into place
        try:
            own = model.extract(stitch).eval()
            form.write(copy.deepcopy(own), about, draft, **options)  # exporters change the network that they trace
            if calibration is not None:
                from stitchkit.ship.int8 import quantise  # needs onnxruntime

                quantise(draft, calibration)
            size = sum(value.nbytes for value in model.state_dict().values())
            judged = _Judged(
                Runner(partial(model, stitch=stitch)),
                output=output_name(about),
                tokens=own.forward_features if gives_features(about) else None,
                has_top1=not (gives_features(about) or is_dense(about)),
            )
            report = _compare(judged, form.read(draft), images, draft.stat().st_size, size)
        except InputError:
            raise
        except OSError as error:
            reason = error.strerror or str(error)
            raise InputError(f"'{path}' cannot be written: {reason}; check the disk and its permissions") from error
        except Exception as error:  # exporters and their runtimes raise many kinds
            raise InputError(
                f"stitch {stitch} cannot be exported as {path.suffix}: {one_line(error)}; try another suffix"
            ) from error
        if fault := _fault(report, is_int8=calibration is not None):
            raise InputError(f"'{path}' was not written: {fault}")
        if path.suffix == ".onnx":
            report = replace(
                report, reader="opset {}, read by ONNX Runtime {} and newer".format(*oldest_runtime(draft))
            )
        sync(draft)
        draft.replace(path)
    return report


def _fault(report: Report, *, is_int8: bool) -> str:
    """Why a file must not be kept; empty if it may."""
    tolerance, advice = (INT8_TOLERANCE, "omit --int8") if is_int8 else (TOLERANCE, "try another suffix")
    for output, found in report.differences.items():
        if not found.largest <= tolerance * max(1.0, found.of):  # nor if one is NaN
            return (
                f"its output '{output}' differs from the SN-Net's by {found.largest:.3g}, more than {tolerance:g} for "
                f"values up to {found.of:.3g}; {advice}"
            )
    if is_int8 and report.same_top1 is not None and report.same_top1 < INT8_AGREEMENT * report.images:
        return (
            f"in int8 it predicts the same class as the SN-Net on only {report.same_top1} of {report.images} images, "
            f"less than {INT8_AGREEMENT:.0%}; {advice}"
        )
    return ""


@dataclass(frozen=True)
class _Judged:
    """What a file is compared with.

    Args:
        network: The stitch inside the SN-Net.
        output: The name of its output in files.
        tokens: Its unpooled features, if files have them too.
        has_top1: Whether it gives the classes of images.
    """

    network: nn.Module
    output: str
    tokens: Callable[[torch.Tensor], torch.Tensor] | None
    has_top1: bool

    def outputs(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """The outputs that a file should give, by name."""
        more = {TOKENS: self.tokens(images)} if self.tokens else {}
        return {self.output: self.network(images), **more}


def _compare(judged: _Judged, net: nn.Module, images: torch.Tensor, file_bytes: int, snnet_bytes: int) -> Report:
    differences, same = defaultdict[str, Difference](Difference), 0
    with torch.inference_mode():
        for batch in (images[:1], images[1:4], *torch.split(images[4:], 16)):  # a file must accept batches of any size
            if not len(batch):
                continue
            output, expected = net(batch), judged.outputs(batch)
            found = output if isinstance(output, dict) else {judged.output: output}
            for name, values in expected.items():
                if found[name].shape != values.shape:
                    shapes = list(found[name].shape), list(values.shape)
                    raise InputError(f"the file gives {name} of shape {shapes[0]}, not {shapes[1]}")
                differences[name] = differences[name].and_of(found[name], values)
            same += int((output.argmax(1) == expected[judged.output].argmax(1)).sum()) if judged.has_top1 else 0
    times = latencies([judged.network, net], images[:1], limit_s=_SECONDS)
    return Report(
        differences=dict(differences),
        same_top1=same if judged.has_top1 else None,
        images=len(images),
        snnet_bytes=snnet_bytes,
        file_bytes=file_bytes,
        snnet_latency=times[0],
        file_latency=times[1],
    )

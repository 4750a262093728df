"""One stitch as a file that runs without its SN-Net, checked against it before the file appears."""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from stitchkit.display import counted
from stitchkit.errors import InputError, one_line
from stitchkit.files import sync
from stitchkit.measure.costs import complete, lacks_latencies
from stitchkit.measure.latency import Latency, latencies
from stitchkit.measure.ledger import read_rows
from stitchkit.measure.metric import compared, metric_of
from stitchkit.model.heads.route_head import TOKENS
from stitchkit.model.route_network import RouteNetwork
from stitchkit.model.snnet import SNNet
from stitchkit.networks.mode import evaluating
from stitchkit.parser import new_file
from stitchkit.ship.commands import CALIBRATION, IMAGES
from stitchkit.ship.description import gives_features, is_dense, output_name
from stitchkit.ship.formats import About, oldest_runtime, suffix_of
from stitchkit.ship.pick import Budget, budget_of, confident_by_image, pick, refusal, superlative, verdict
from stitchkit.ship.stitch_files import FORMATS, Runner
from stitchkit.ship.trained_snnet import Trained, calibrate, check_origin, describe, sample_images, trained_of

TOLERANCE, INT8_TOLERANCE = 1e-4, 0.25
"""Largest accepted difference of logits or features, as a share of the largest one if that is above 1."""
INT8_AGREEMENT = 0.9
"""Smallest accepted share of images with the same class in int8.

Both limits for int8 are chosen to refuse files that are broken; nothing measured decides them.
"""

_SECONDS = 1.0  # longest time to measure latencies, which are only printed


class Difference(NamedTuple):
    """The largest difference of a file's output, or NaN, and the largest output of its SN-Net, in absolute value."""

    largest: float
    of: float


@dataclass(frozen=True)
class Report:
    """The comparison of a file with its SN-Net on some images; sizes in bytes, latencies of one image.

    `reader` says the opset of an ONNX file and the oldest ONNX Runtime that reads it.
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
            snnet, net, output = Runner(partial(model, stitch=stitch)), form.read(draft), output_name(about)
            tokens = own.forward_features if isinstance(own, RouteNetwork) and gives_features(about) else None
            differences, same = _compare(snnet, net, images, output, tokens)
            times = latencies([snnet, net], images[:1], limit_s=_SECONDS)
            report = Report(
                differences,
                None if gives_features(about) or is_dense(about) else same,
                images=len(images),
                snnet_bytes=sum(value.nbytes for value in model.state_dict().values()),
                file_bytes=draft.stat().st_size,
                snnet_latency=times[0],
                file_latency=times[1],
                reader=oldest_runtime(draft) if path.suffix == ".onnx" else "",
            )
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
        sync(draft)
        draft.replace(path)
    return report


def _fault(report: Report, *, is_int8: bool) -> str:
    """Why a file must not be kept; empty if it may."""
    tolerance, advice = (INT8_TOLERANCE, "omit --int8") if is_int8 else (TOLERANCE, "try another suffix")
    for output, (largest, size) in report.differences.items():
        if not largest <= tolerance * max(1.0, size):  # nor if one is NaN
            return (
                f"its output '{output}' differs from the SN-Net's by {largest:.3g}, more than {tolerance:g} for values "
                f"up to {size:.3g}; {advice}"
            )
    if is_int8 and report.same_top1 is not None and report.same_top1 < INT8_AGREEMENT * report.images:
        return (
            f"in int8 it predicts the same class as the SN-Net on only {report.same_top1} of {report.images} images, "
            f"less than {INT8_AGREEMENT:.0%}; {advice}"
        )
    return ""


def _compare(
    snnet: nn.Module, net: nn.Module, images: torch.Tensor, output: str,
    tokens: Callable[[torch.Tensor], torch.Tensor] | None,
) -> tuple[dict[str, Difference], int]:  # fmt: skip
    """The differences of each output, and the number of images with the same largest one of the first `output`."""
    errors, sizes, same = defaultdict[str, list[torch.Tensor]](list), defaultdict[str, list[torch.Tensor]](list), 0
    with torch.inference_mode():
        for batch in (images[:1], images[1:4], *torch.split(images[4:], 16)):  # a file must accept batches of any size
            if not len(batch):
                continue
            result, expected = net(batch), {output: snnet(batch)} | ({TOKENS: tokens(batch)} if tokens else {})
            outputs = result if isinstance(result, dict) else {output: result}
            for name, values in expected.items():
                if outputs[name].shape != values.shape:
                    shapes = list(outputs[name].shape), list(values.shape)
                    raise InputError(f"the file gives {name} of shape {shapes[0]}, not {shapes[1]}")
                errors[name].append((outputs[name] - values).abs().max())
                sizes[name].append(values.abs().max())
            same += int((outputs[output].argmax(1) == expected[output].argmax(1)).sum())
    # torch's max keeps NaN; Python's would drop it, and a broken file would agree.
    largest = {name: [float(torch.stack(each[name]).max()) for each in (errors, sizes)] for name in errors}
    return {name: Difference(*pair) for name, pair in largest.items()}, same


def run(flags: argparse.Namespace) -> None:
    """Run `stitchkit export`."""
    output, cfg_id, budget = flags.output, flags.cfg_id, budget_of(flags)
    if (cfg_id is None) == (flags.ledger is None):
        raise InputError("give either --cfg-id N, or --ledger FILE with a budget such as --max-flops 5G")
    if cfg_id is not None and (budget.limits or flags.metric or flags.confident):
        what = "the budget" if budget.limits else "the metric" if flags.metric else "--confident"
        raise InputError(f"--cfg-id {cfg_id} already names a stitch; omit {what}, or give --ledger instead")
    trained = trained_of(flags, cfg_id=cfg_id)
    if flags.int8 and not trained.has_data:
        raise InputError("--int8 needs training images, whose activations set its ranges; add --data DIR")
    cfg_id = _best(flags, budget, trained) if cfg_id is None else cfg_id
    stitch = trained.model.resolve(cfg_id)
    images, source = sample_images(trained, IMAGES)
    calibrate(trained, cfg_id)
    calibration = sample_images(trained, CALIBRATION, train=True)[0] if flags.int8 else None
    about = describe(trained, cfg_id)
    report = export(trained.model, cfg_id, output, images, about, calibration=calibration, opset=flags.opset)
    print(f"stitch {cfg_id}, {stitch}, is in {output}; compared on {report.images} {source}:")
    for name, difference in report.differences.items():
        print(f"  largest difference {difference.largest:.2g} of {name} up to {difference.of:.3g}")
    if report.same_top1 is not None:
        print(f"  same top-1 class on {report.same_top1} of {report.images}")
    for name, size, latency in (
        ("SN-Net (all weights)", report.snnet_bytes, report.snnet_latency),
        (Path(output).name, report.file_bytes, report.file_latency),
    ):
        print(f"  {name:20}  {size / 2**20:8.2f} MiB  {latency.ms:8.2f} ms an image on this CPU{latency.doubt}")
    if report.reader:
        print(f"  {report.reader}")


def _best(flags: argparse.Namespace, budget: Budget, trained: Trained) -> int:
    """The `cfg_id` of the best stitch of `--ledger`, which must have been measured with these weights."""
    check_origin(flags.ledger, trained, otherwise="export a stitch by --cfg-id")
    rows = read_rows(flags.ledger)
    by_latency = budget.max_latency_ms is not None
    if by_latency and lacks_latencies(rows):
        print(f"measuring the latencies of {counted(len(rows), 'stitch')} here: the ledger has none that are reliable")
    if note := complete(rows, trained.model, latency=by_latency):
        print(note)
    metric = metric_of(rows, flags.metric)
    confident = confident_by_image(rows, flags.ledger, budget, metric) if flags.confident else None
    choice = pick(rows, budget, metric=metric, allow_unreliable=flags.allow_unreliable, confident=confident)
    if choice.best is None:
        raise InputError(refusal(rows, budget, choice))
    if confident is not None:
        print(verdict(rows, budget, choice))
    elif not budget.limits:
        number = counted(len(compared(rows, metric)), "stitch")
        print(f"no budget was given; exporting the {superlative(metric)} of {number}")
    return int(choice.best["cfg_id"])

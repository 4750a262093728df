"""One stitch as a file that runs without its SN-Net, checked against it before the file appears."""

from __future__ import annotations

import copy
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from stitchkit.errors import InputError, one_line
from stitchkit.files import sync
from stitchkit.measure.latency import latency_ms
from stitchkit.model.snnet import SNNet
from stitchkit.networks.mode import evaluating
from stitchkit.parser import new_file
from stitchkit.ship.stitch_files import About, Runner, format_of

TOLERANCE = 1e-4
"""Largest accepted difference of logits, as a share of the largest logit if that is above 1."""


@dataclass(frozen=True)
class Report:
    """The comparison of a file with its SN-Net on some images; sizes in bytes, latencies of one image.

    Args:
        largest_difference: Between the logits of both.
        largest_logit: Of the SN-Net, in absolute value.
        same_top1: Images on which both predict the same class.
        snnet_bytes: All weights of the SN-Net.
        snnet_ms: The stitch inside the SN-Net.
    """

    largest_difference: float
    largest_logit: float
    same_top1: int
    images: int
    snnet_bytes: int
    file_bytes: int
    snnet_ms: float
    file_ms: float


def export(
    model: SNNet,
    stitch: int,
    path: str | Path,
    images: torch.Tensor,
    about: About,
    *,
    net: nn.Module | None = None,
) -> Report:
    """Write one stitch to a file, which appears only if it agrees with the SN-Net.

    Args:
        model: The SN-Net, on the CPU.
        stitch: The `cfg_id`.
        path: The file; its suffix, `.safetensors`, `.onnx` or `.pt2`, selects the format.
        images: Prepared images `[B, C, H, W]` to compare on.
        about: Its description, from `stitchkit.ship.trained_snnet.describe`.
        net: The stitch's network if its statistics differ from the SN-Net's; the file is then compared with it.
    """
    form, path = format_of(path), new_file(str(path))
    with evaluating(model), tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        draft = Path(folder) / path.name  # on the same disk, so that it can be renamed into place
        try:
            inside = Runner(partial(model, stitch=stitch)) if net is None else net.eval()
            # A copy, because exporters change the network that they trace.
            form.write(model.extract(stitch).eval() if net is None else copy.deepcopy(net), about, draft)
            size = sum(value.nbytes for value in model.state_dict().values())
            report = _compare(inside, form.read(draft), images, draft, size)
        except InputError:
            raise
        except OSError as error:
            reason = error.strerror or str(error)
            raise InputError(f"'{path}' cannot be written: {reason}; check the disk and its permissions") from error
        except Exception as error:  # exporters and their runtimes raise many kinds
            raise InputError(
                f"stitch {stitch} cannot be exported as {path.suffix}: {one_line(error)}; try another suffix"
            ) from error
        if not report.largest_difference <= TOLERANCE * max(1.0, report.largest_logit):  # nor if a logit is NaN
            raise InputError(
                f"'{path}' was not written: its logits differ from the SN-Net's by {report.largest_difference:.3g}, "
                f"more than {TOLERANCE:g} of logits up to {report.largest_logit:.3g}; try another suffix"
            )
        sync(draft)
        draft.replace(path)
    return report


def _compare(inside: nn.Module, net: nn.Module, images: torch.Tensor, draft: Path, snnet_bytes: int) -> Report:
    largest, logit, same = 0.0, 0.0, 0
    with torch.inference_mode():
        for batch in (images[:1], images[1:4], *torch.split(images[4:], 16)):  # a file must accept batches of any size
            if not len(batch):
                continue
            expected, found = inside(batch), net(batch)
            if found.shape != expected.shape:
                raise InputError(f"the file gives logits of shape {list(found.shape)}, not {list(expected.shape)}")
            # torch's max keeps NaN; Python's would drop it, and a broken file would agree.
            largest = float(torch.tensor([largest, (found - expected).abs().max()]).max())
            logit = max(logit, float(expected.abs().max()))
            same += int((found.argmax(1) == expected.argmax(1)).sum())
    return Report(
        largest_difference=largest,
        largest_logit=logit,
        same_top1=same,
        images=len(images),
        snnet_bytes=snnet_bytes,
        file_bytes=draft.stat().st_size,
        snnet_ms=latency_ms(inside, images[:1]),
        file_ms=latency_ms(net, images[:1]),
    )

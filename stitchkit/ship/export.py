"""One stitch as a file that runs without its SN-Net, checked against it before the file appears."""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stitchkit.errors import InputError, one_line
from stitchkit.measure.latency import latency_ms
from stitchkit.model.snnet import SNNet
from stitchkit.networks.mode import evaluating
from stitchkit.parser import new_file
from stitchkit.ship.stitch_files import format_of

TOLERANCE = 1e-4
"""Largest difference of logits that passes, as a share of the largest logit where that is above 1."""


@dataclass(frozen=True)
class Report:
    """What the check of an export found; sizes in bytes, latencies of one image.

    Args:
        largest_difference: Between the logits of file and SN-Net.
        largest_logit: Of the SN-Net, in absolute value.
        same_top1: Images on which both say the same class.
        images: Images compared.
        snnet_bytes: All weights of the SN-Net.
        file_bytes: The file.
        snnet_ms: The stitch inside the SN-Net.
        file_ms: The file.
    """

    largest_difference: float
    largest_logit: float
    same_top1: int
    images: int
    snnet_bytes: int
    file_bytes: int
    snnet_ms: float
    file_ms: float

    @property
    def agrees(self) -> bool:
        """Whether the file computes what the SN-Net does; never where a logit is not a number."""
        return self.largest_difference <= TOLERANCE * max(1.0, self.largest_logit)


def export(
    model: SNNet,
    stitch: int,
    path: str | Path,
    images: torch.Tensor,
    about: dict[str, Any],
    *,
    net: nn.Module | None = None,
) -> Report:
    """Write one stitch to a file, and see that it computes what the SN-Net does.

    The file appears when the check is passed, complete or not at all.

    Args:
        model: The SN-Net, on the CPU.
        stitch: The `cfg_id`.
        path: The file; `.safetensors`, `.onnx` or `.pt2` says the format.
        images: Prepared images `[B, C, H, W]` to compare on.
        about: What the stitch is, by `stitchkit.ship.trained_snnet.describe`.
        net: The stitch's network where it has other statistics than in the SN-Net, which then takes no part.

    Raises:
        InputError: If there is something at the path, the suffix is unknown, a package is missing, the stitch cannot
            be written so, or file and SN-Net differ.
    """
    form, path = format_of(path), new_file(str(path))
    with evaluating(model), tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        draft = Path(folder) / path.name
        try:
            inside = _Inside(model, stitch) if net is None else net.eval()
            form.write(model.extract(stitch).eval() if net is None else copy.deepcopy(net), about, draft)
            report = _compare(inside, form.read(draft), images, draft, _size(model))
        except InputError:
            raise
        except OSError as error:
            reason = error.strerror or str(error)
            raise InputError(f"'{path}' cannot be written: {reason}; check the disk and its permissions") from error
        except Exception as error:  # exporters and their runtimes raise many kinds
            raise InputError(
                f"stitch {stitch} cannot be exported as {path.suffix}: {one_line(error)}; try another suffix"
            ) from error
        if not report.agrees:
            raise InputError(
                f"'{path}' was not written: its logits differ from the SN-Net's by {report.largest_difference:.3g}, "
                f"more than {TOLERANCE:g} of logits up to {report.largest_logit:.3g}; try another suffix"
            )
        _publish(draft, path)
    return report


def _compare(inside: nn.Module, net: nn.Module, images: torch.Tensor, draft: Path, snnet_bytes: int) -> Report:
    largest, logit, same = 0.0, 0.0, 0
    with torch.inference_mode():
        for batch in _batches(images):
            expected, found = inside(batch), net(batch)
            if found.shape != expected.shape:
                raise InputError(f"the file gives logits of shape {list(found.shape)}, not {list(expected.shape)}")
            # max() of torch keeps what is not a number, that of Python would lose it
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


def _size(model: nn.Module) -> int:
    return sum(value.nbytes for value in model.state_dict().values())


class _Inside(nn.Module):
    """One stitch as it runs in its SN-Net."""

    def __init__(self, model: SNNet, stitch: int):
        super().__init__()
        self.model = model
        self.stitch = stitch

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(x, self.stitch)
        return logits


def _batches(images: torch.Tensor) -> Iterator[torch.Tensor]:
    """Batches of 1, 3 and then 16 images: an export is to take any number."""
    sizes = [1, 3]
    while images.numel():
        size = sizes.pop(0) if sizes else 16
        yield images[:size]
        images = images[size:]


def _publish(draft: Path, path: Path) -> None:
    """Let a finished file appear, all of it on the disk."""
    with draft.open("rb") as file:
        os.fsync(file.fileno())
    draft.replace(path)

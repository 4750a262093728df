"""The latency of a stitch on the current device: as the sum of its steps, or as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

import torch
from torch import nn
from torch.utils.benchmark import Timer

from stitchkit.measure.ledger import Row
from stitchkit.measure.profile import RouteCosts
from stitchkit.model.snnet import SNNet
from stitchkit.networks.mode import evaluating

_SECONDS = 0.2
"""Minimum duration of each measurement."""
_WHOLE = 5
"""Approximate number of stitches that are also measured as a whole."""


def latency_ms(module: nn.Module, x: torch.Tensor) -> float:
    """Milliseconds of one forward pass of a batch: the median after a warm-up, synchronised on a GPU."""
    timer = Timer("module(x)", globals={"module": module, "x": x}, num_threads=torch.get_num_threads())
    with evaluating(module), torch.inference_mode():
        timer.timeit(2)  # the first runs allocate memory and choose kernels
        return 1e3 * timer.blocked_autorange(min_run_time=_SECONDS).median


def add_latencies(rows: Sequence[Row], model: SNNet, *, batch_size: int) -> str:
    """Add `latency_ms` of a batch and `images_per_s` to the rows of a ledger, as sums over the steps of each stitch.

    Returns:
        The method in words, and the deviation of stitches measured as a whole from the sums of their steps.
    """
    meter = RouteCosts(model, latency_ms, batch_size=batch_size)
    for row in rows:
        row["latency_ms"] = meter.cost(row["cfg_id"])
        row["images_per_s"] = 1e3 * batch_size / row["latency_ms"]
    weights = next(model.parameters())
    images = torch.zeros(batch_size, *model.input_size, device=weights.device, dtype=weights.dtype)
    gpu = f" ({torch.cuda.get_device_name(weights.device)})" if weights.is_cuda else ""
    # A sum misses interactions between steps (overlapping launches, caches), so some stitches are measured whole.
    some = rows[:: max(1, len(rows) // _WHOLE)]
    differences = []
    for row in some:
        whole = latency_ms(model.extract(row["cfg_id"]), images)
        differences.append(100 * abs(row["latency_ms"] - whole) / whole)
    return (
        f"latency of batches of {batch_size} on {weights.device}{gpu}, {torch.get_num_threads()} CPU threads: "
        f"medians, summed over steps; {len(some)} stitches measured as a whole differ by {median(differences):.1f} % "
        f"(median), at most {max(differences):.1f} %"
    )

"""The latency of networks on one device, measured in turns until the medians are stable."""

from __future__ import annotations

import platform
import re
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter
from typing import NamedTuple

import torch
from torch import nn

from stitchkit.distributed import World
from stitchkit.measure.latency_verdict import LIMIT_PERCENT, latency_note
from stitchkit.measure.ledger import Row
from stitchkit.model.snnet import SNNet
from stitchkit.networks.mode import evaluating
from stitchkit.progress import progress

_ROUNDS = 7  # smallest number of rounds, for quartiles that mean something
_SECONDS = 1.0  # minimum duration: bursts of other programs are shorter
_LIMIT_SECONDS = 60.0  # no round begins later, if all had their smallest number


class Latency(NamedTuple):
    """The latency of a network; in percent, half the median's 95 % interval, and the drift between both halves."""

    ms: float
    interval_percent: float
    drift_percent: float

    @property
    def spread_percent(self) -> float:
        """The larger of both."""
        return max(self.interval_percent, self.drift_percent)

    @property
    def reliable(self) -> bool:
        """Whether the median is exact enough, and did not drift during the measurement."""
        return self.spread_percent <= LIMIT_PERCENT

    @property
    def doubt(self) -> str:
        """The warning beside an unreliable latency, in brackets; empty for a reliable one."""
        if self.reliable:
            return ""
        has_drifted = self.drift_percent >= self.interval_percent
        cause = "its two halves differ by" if has_drifted else "single passes differ; the median is exact to ±"
        return f" (unreliable: {cause} {self.spread_percent:.1f} %, and the limit is {LIMIT_PERCENT:g} %)"


def latencies(networks: Sequence[nn.Module], x: torch.Tensor, *, limit_s: float | None = None) -> list[Latency]:
    """Latencies of a forward pass of `x`, synchronised on a GPU.

    Each round runs every network once, so a slow phase of the machine affects all. Rounds end when all latencies
    are reliable, or after `limit_s` seconds, by default a minute.

    Source: McGill, Tukey, Larsen, "Variations of box plots" (1978) for the interval, 1.57 quartile ranges / sqrt(n).
    """
    times: list[list[float]] = [[] for _ in networks]
    limit, begin = _LIMIT_SECONDS if limit_s is None else limit_s, perf_counter()
    world = World(0, 1, x.device)
    with ExitStack() as modes, torch.inference_mode():
        for network in networks:
            modes.enter_context(evaluating(network))
        for number in progress(count(1), world, "latency", unit="rounds", total=_ROUNDS):
            for network, own in zip(networks, times, strict=True):
                network(x)  # caches still hold the previous network; the first runs also choose kernels
                own.append(_milliseconds(network, x))
            took = perf_counter() - begin
            if number < _ROUNDS or took < min(_SECONDS, limit):
                continue
            summaries = [_summary(own) for own in times]
            if took >= limit or all(each.reliable for each in summaries):
                break
    return summaries


def _milliseconds(network: nn.Module, x: torch.Tensor) -> float:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    begin = perf_counter()
    network(x)
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    return 1e3 * (perf_counter() - begin)


def _summary(times: Sequence[float]) -> Latency:
    middle, (low, _, high), half = median(times), quantiles(times, n=4), len(times) // 2
    interval = 1.57 * (high - low) / len(times) ** 0.5
    # The interval assumes that times are independent; those of a machine that becomes slower are not.
    drift = abs(median(times[half:]) - median(times[:half]))
    return Latency(middle, 100 * interval / middle, 100 * drift / middle)


def add_latencies(rows: Sequence[Row], model: SNNet, *, batch_size: int) -> str:
    """Add the latency of a batch and its conditions to the rows of a ledger; return conditions and verdict in words.

    Stitches are measured whole: on a CPU, sums over the steps of configs/digits_vit.json were 12 to 18 % lower.
    """
    weights = next(model.parameters())
    images = torch.zeros(batch_size, *model.input_size, device=weights.device, dtype=weights.dtype)
    measured = latencies([model.route(row["cfg_id"]) for row in rows], images)
    chip = torch.cuda.get_device_name(weights.device) if weights.is_cuda else processor()
    conditions = {
        "latency_batch_size": batch_size,
        "latency_device": f"{weights.device} ({chip})",
        "latency_threads": torch.get_num_threads(),
        "latency_precision": str(weights.dtype).removeprefix("torch."),
        # One verdict for all: what disturbed one stitch has disturbed the others.
        "latency_reliable": all(each.reliable for each in measured),
    }
    for row, each in zip(rows, measured, strict=True):
        row["latency_ms"] = each.ms
        row["images_per_s"] = 1e3 * batch_size / each.ms
        row["latency_spread_percent"] = each.spread_percent
        row.update(conditions)
    return latency_note(rows)


def processor() -> str:
    """The name of the processor, or where the system does not say it, its architecture."""
    info = Path("/proc/cpuinfo")  # Linux, where `platform.processor` knows only the architecture, if anything
    model = re.search(r"model name\s*: (.+)", info.read_text()) if info.exists() else None
    return model[1] if model else platform.processor() or platform.machine()

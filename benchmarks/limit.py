"""The limit of a device: multiply-adds a second of its best matrix product, to compare those of our work with."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

import torch
from torch.nn import functional as F

from benchmarks.frame import Options, Seconds
from studies.evidence.train import flop_counter

# Rows and columns of activations, columns of the result: square ones, and the two of a ViT's MLP.
_SHAPES = {
    "cpu": ((1024, 1024, 1024), (2048, 2048, 2048), (4096, 4096, 4096), (2048, 768, 3072), (2048, 3072, 768)),
    "cuda": ((4096, 4096, 4096), (8192, 8192, 8192), (16384, 16384, 16384), (16384, 4096, 16384)),
}
_SECONDS = 1.0
"""How long a turn of the products takes, so that it meets the same disturbances as the work beside it."""


@dataclass(frozen=True)
class Limit:
    """The best matrix product of a device in one precision, repeated: a way for `Options.alternate`.

    Args:
        repeats: Products of a turn.
    """

    activations: torch.Tensor
    weights: torch.Tensor
    repeats: int

    @classmethod
    def find(cls, options: Options) -> Limit:
        """Try some large products, each the faster of two times, and choose that with the most multiply-adds a second.

        If `options.quick`, there is only a small one.
        """
        shapes = ((64, 64, 64),) if options.quick else _SHAPES[options.device]
        found = [cls._of(shape, options) for shape in shapes]
        seconds = [min(_seconds(limit, options) for _ in range(2)) for limit in found]
        rate, best = max((found[i].multiply_adds / seconds[i], i) for i in range(len(found)))
        chosen = found[best]
        repeats = 1 if options.quick else max(1, round(_SECONDS * rate / chosen.multiply_adds))
        return cls(chosen.activations, chosen.weights, repeats)

    @classmethod
    def _of(cls, shape: tuple[int, int, int], options: Options) -> Limit:
        rows, inner, columns = shape
        activations, weights = (
            torch.randn(count, inner).to(options.device, options.dtype) for count in (rows, columns)
        )
        limit = cls(activations, weights, 1)
        limit()  # libraries choose and prepare their kernel at the first call
        return limit

    @property
    def multiply_adds(self) -> int:
        """Those of a turn."""
        rows, inner = self.activations.shape
        return rows * inner * len(self.weights) * self.repeats

    @torch.no_grad()
    def __call__(self) -> None:
        """A turn."""
        for _ in range(self.repeats):
            F.linear(self.activations, self.weights)

    def shares(self, seconds: Seconds, work: Mapping[str, int]) -> dict[str, float | None]:
        """The share of the limit that each way reached: `share` for ours, `WAY_share` for others.

        Args:
            seconds: Of all ways; `limit` is this one.
            work: Multiply-adds of each way.
        """
        rate = self.multiply_adds / median(seconds["limit"])
        found: dict[str, float | None] = {"limit_gmacs": rate / 1e9}
        for way, count in work.items():
            found["share" if way == "ours" else f"{way}_share"] = count / median(seconds[way]) / rate
        return found


def _seconds(work: Callable[[], object], options: Options) -> float:
    options.wait()
    start = time.perf_counter()
    work()
    options.wait()
    return time.perf_counter() - start


def multiply_adds(work: Callable[[], object]) -> int:
    """Multiply-adds of the matrix products and convolutions that some work really computes, forward and backward.

    They are counted while it runs once. Attention must not be fused and blocks not be compiled, since nothing can be
    counted inside; fvcore, which counts forward passes only, adds norms and the like, less than a hundredth.
    """
    # One thread: the backward pass on a GPU has one of its own, where a counter sees nothing.
    with torch.autograd.set_multithreading_enabled(False), flop_counter() as counter:
        work()
    return int(counter.get_total_flops()) // 2

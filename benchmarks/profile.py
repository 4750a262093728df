"""FLOPs and parameters of all stitches: sums over steps against a trace of each extracted network."""

from __future__ import annotations

import sys

import torch

from benchmarks.command import Options, command, random_snnet
from benchmarks.reference import trace
from benchmarks.timing import Check, Result, alternate
from stitchkit.measure.profile import Profiler


@torch.no_grad()
def measure(options: Options) -> Result:
    """Time a new `Profiler` over all stitches, and `extract` with fvcore for each of them."""
    model = random_snnet(options)
    cfg_ids = range(0, len(model.space), 4 if options.quick else 1)
    image = torch.zeros(1, *model.input_size)

    def ours() -> torch.Tensor:
        profiler = Profiler(model)  # a new one in each round: it remembers what it has measured
        return torch.tensor([profiler.cost(cfg_id)[:2] for cfg_id in cfg_ids])

    def reference() -> torch.Tensor:
        return torch.tensor([trace(model.extract(cfg_id), image) for cfg_id in cfg_ids])

    ways = {"ours": ours, "reference": reference}
    seconds, costs = alternate(ways, rounds=3, quick=options.quick)
    difference = (costs["ours"] - costs["reference"]).abs().max().item()
    return Result(
        "profile",
        f"{len(cfg_ids)} of {len(model.space)} stitches, {options.label}",
        seconds,
        (Check("FLOPs and params, absolute", difference, 0),),
    )


if __name__ == "__main__":
    sys.exit(command(measure, __doc__))

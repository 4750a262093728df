"""FLOPs and parameters of all stitches: sums over steps against a trace of each extracted network."""

from __future__ import annotations

import warnings

import torch
from torch import nn

from benchmarks.frame import Check, Options, Result, command, random_snnet
from stitchkit.measure.profile import Profiler
from stitchkit.networks.mode import unfused_attention

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # on import, fvcore compiles losses in a way that torch has deprecated
    from fvcore.nn import FlopCountAnalysis


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

    seconds, costs = options.alternate({"ours": ours, "reference": reference}, rounds=3)
    difference = (costs["ours"] - costs["reference"]).abs().max().item()
    work = f"{len(cfg_ids)} of {len(model.space)} stitches, {options.label}"
    return Result("profile", work, seconds, (Check("FLOPs and params, absolute", difference, 0),))


def trace(net: nn.Module, image: torch.Tensor) -> tuple[int, int]:
    """FLOPs and parameters of a network, traced by fvcore."""
    with unfused_attention(net):  # fvcore does not count inside fused attention
        analysis = FlopCountAnalysis(net, image).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        return int(analysis.total()), sum(parameter.numel() for parameter in net.parameters())


if __name__ == "__main__":
    raise SystemExit(command(measure, __doc__))

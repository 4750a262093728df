"""Gradients that the ranks of an SN-Net exchange in a step: GradientReducer against DistributedDataParallel.

Both train copies of one network on the same images and stitches, step by step in turn, on the CPU with gloo. The last
line is JSON: seconds per step (median), how many times as long the reference takes (median over steps side by side),
and bytes of gradients per step (mean).
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import time
from collections.abc import Callable
from statistics import median

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.frame import DEIT, DIGITS
from stitchkit import create_snnet
from stitchkit.engine.gradients import GradientReducer
from stitchkit.settings.stitch_recipe import StitchRecipe
from stitchkit.training.samplers import Uniform


def measure(rank: int, options: argparse.Namespace, folder: str) -> None:
    """Train both copies in turn on one of the ranks, which meet in `folder`; the first rank prints the result."""
    torch.set_num_threads(1)  # the ranks share the cores of one machine
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=options.ranks)
    torch.manual_seed(0)
    ours = create_snnet(DIGITS if options.quick else DEIT, checkpoints=False).train()
    reference = DistributedDataParallel(copy.deepcopy(ours), find_unused_parameters=True)
    settings = StitchRecipe(sampling="shared" if options.shared else "per_rank")
    reducer, sampler = GradientReducer(ours), Uniform(ours.space.ids, lambda _: 0, settings, 0, ())
    ways: dict[str, tuple[nn.Module, Callable[[], None]]] = {
        "ours": (ours, reducer.reduce), "reference": (reference, lambda: None)
    }  # fmt: skip
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    sent, agree = [], True
    for step in range(options.steps + 1):
        x = torch.randn(options.batch, *ours.input_size)
        cfg_id = sampler.draw(step, rank)
        for way in sorted(ways, reverse=bool(step % 2)):  # take turns: the second finds warm caches
            network, reduce = ways[way]
            network.zero_grad()
            dist.barrier()  # here and below: a step takes as long as its slowest rank
            start = time.perf_counter()
            network(x, cfg_id).square().mean().backward()
            reduce()
            dist.barrier()
            seconds[way].append(time.perf_counter() - start)
        pairs = list(zip(ours.parameters(), reference.parameters(), strict=True))
        agree = agree and all(_same(one.grad, other.grad) for one, other in pairs)
        sent.append(sum(one.grad.nbytes for one, _ in pairs if one.grad is not None) + len(pairs))
    if rank == 0:
        own, others = seconds["ours"][1:], seconds["reference"][1:]
        result = {
            "name": "gradients",
            # Other jobs disturb single steps, so each step is compared with the one beside it.
            "ratio": median(other / one for one, other in zip(own, others, strict=True)),
            "ours_s": median(own),
            "reference_s": median(others),
            "agree": agree,
            "bytes_ours": sum(sent[1:]) / options.steps,
            # DDP sends all gradients, and four bytes for each parameter to say whether it was used.
            "bytes_reference": sum(one.nbytes + 4 for one in ours.parameters()),
        }
        print(json.dumps(result))
    dist.destroy_process_group()


def _same(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return torch.allclose(one, other, rtol=1e-4, atol=1e-7)


def main() -> None:
    """Read the flags and start the ranks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the small anchors of the digits instead of DeiT-Ti/S/B")
    parser.add_argument("--ranks", type=int, default=2, help="processes")
    parser.add_argument("--steps", type=int, default=30, help="steps of each way")
    parser.add_argument("--batch", type=int, default=1, help="images per rank and step")
    parser.add_argument("--shared", action="store_true", help="one stitch for all ranks, as --sampling shared")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(measure, (options, folder), nprocs=options.ranks)  # type: ignore[attr-defined,no-untyped-call]


if __name__ == "__main__":
    main()

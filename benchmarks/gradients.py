"""What the ranks of an SN-Net exchange in a step: GradientReducer against DistributedDataParallel.

Both train copies of one network on the same images and stitches, step by step in turn, on the CPU with gloo. The last
line is JSON: seconds of a step (median), how many times as long the reference takes (median of steps side by side), and
bytes of gradients in a step (mean).
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import stitchkit
from stitchkit.engine.gradients import GradientReducer
from stitchkit.train.sampler import Sampler

_CONFIG = Path(__file__).parent.parent / "configs/deit_ti_s_b.json"
_SIZES = {"img_size": 16, "patch_size": 8, "depth": 12, "num_heads": 2, "num_classes": 4}
_PICO = {
    "anchors": [
        {"label": label, "name": "vit_tiny_patch16_224", "kwargs": _SIZES | {"embed_dim": width}}
        for label, width in (("ti", 32), ("s", 64), ("b", 128))
    ]
}


def measure(
    rank: int, ranks: int, config: Mapping[str, Any] | Path, steps: int, batch: int, shared: bool, folder: str
) -> None:
    """A rank: train both copies in turn; the first rank prints what it found.

    Args:
        rank: Number of this process.
        ranks: Number of processes.
        config: Of the SN-Net.
        steps: Steps of each way, after one to warm up.
        batch: Images of a rank in a step.
        shared: All ranks train the same stitch in a step.
        folder: Where the ranks meet.
    """
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=ranks)
    torch.manual_seed(0)
    ours = stitchkit.create_snnet(config, pretrained=False).train()
    reference = DistributedDataParallel(copy.deepcopy(ours), find_unused_parameters=True)
    reducer, sampler = GradientReducer(ours), Sampler(range(len(ours.space)), seed=0, shared=shared)
    seconds: dict[str, list[float]] = {"ours": [], "reference": []}
    sent, agree = [], True
    for step in range(steps + 1):
        x = torch.randn(batch, *ours.input_size)
        cfg_id = sampler.draw(step, rank)
        ways: dict[str, tuple[nn.Module, Callable[[], None]]] = {
            "ours": (ours, reducer.reduce), "reference": (reference, lambda: None)
        }  # fmt: skip
        for way in sorted(ways, reverse=bool(step % 2)):
            network, reduce = ways[way]
            network.zero_grad()
            dist.barrier()
            start = time.perf_counter()
            network(x, cfg_id).square().mean().backward()
            reduce()
            dist.barrier()
            seconds[way].append(time.perf_counter() - start)
        pairs = list(zip(ours.parameters(), reference.parameters(), strict=True))
        agree = agree and all(_same(one.grad, other.grad) for one, other in pairs)
        sent.append(sum(one.grad.nbytes for one, _ in pairs if one.grad is not None) + len(pairs))
    if rank == 0:
        # Other jobs disturb single steps, so each is set against the one beside it.
        pairs_s = list(zip(seconds["ours"], seconds["reference"], strict=True))[1:]
        ours_s, reference_s = (median(values) for values in zip(*pairs_s, strict=True))
        result = {
            "name": "gradients", "ratio": median(other / own for own, other in pairs_s), "ours_s": ours_s,
            "reference_s": reference_s, "agree": agree, "bytes_ours": sum(sent[1:]) / steps,
            # All gradients, and four bytes for each that say whether it was used.
            "bytes_reference": sum(one.nbytes + 4 for one in ours.parameters()),
        }  # fmt: skip
        print(json.dumps(result))
    dist.destroy_process_group()


def _same(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return torch.allclose(one, other, rtol=1e-4, atol=1e-7)


def main() -> None:
    """Read the flags and start the ranks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="pico anchors instead of DeiT-Ti/S/B")
    parser.add_argument("--ranks", type=int, default=2, help="processes")
    parser.add_argument("--steps", type=int, default=30, help="steps of each way")
    parser.add_argument("--batch", type=int, default=1, help="images of a rank in a step")
    parser.add_argument("--shared", action="store_true", help="one stitch for all ranks, as --sampling shared")
    options = parser.parse_args()
    config = _PICO if options.quick else _CONFIG
    with tempfile.TemporaryDirectory() as folder:
        arguments = (options.ranks, config, options.steps, options.batch, options.shared, folder)
        torch.multiprocessing.spawn(measure, arguments, nprocs=options.ranks)  # type: ignore[attr-defined,no-untyped-call]


if __name__ == "__main__":
    main()

"""Measure how much time an evaluation in two stages takes, as a share of that of all stitches on all images.

    OMP_NUM_THREADS=1 PYTHONPATH=. python docs/two_stage_time.py CONFIGURATION=LEDGER... [--images N]

Weights and images are random, since the time does not depend on them. Which stitches are left follows from the ledger,
as in a row of `two_stage_table.py`: with a tenth of the images first, and 0.2 points. What counts is the time of the
process on one core, which other work on the machine hardly changes.
"""

from __future__ import annotations

import argparse
import sys
import time
from statistics import median

import torch
from two_stage_table import Space, left, read_space

from stitchkit.errors import InputError
from stitchkit.measure.two_stage import stratified_part
from stitchkit.model.create import create_snnet
from stitchkit.model.onepass import OnePass
from stitchkit.settings.stitch_config import StitchConfig

ROUNDS = 3
SHARE, WITHIN = 0.1, 0.2


@torch.inference_mode()
def measure(space: Space, count: int) -> str:
    """Time a pass of all stitches and one of those that are left, in turns; what follows for two stages, in words."""
    right = space.right(0)
    part = stratified_part(space.labels, round(SHARE * len(space.labels)), 0)
    kept = left(space, right[:, part], WITHIN)
    model = create_snnet(StitchConfig.load(space.name), checkpoints=False).eval()
    images = torch.randn(count, *model.input_size)
    passes = [OnePass(model, cfg_ids) for cfg_ids in (space.cfg_ids, [space.cfg_ids[place] for place in kept])]
    passes[1](images[:1])  # the first pass of a process is slower
    turns = [[_seconds(each, images) for each in passes] for _ in range(ROUNDS)]
    flops = sum(space.flops[place] for place in kept) / sum(space.flops)
    every, some = (median(seconds) / count for seconds in zip(*turns, strict=True))
    ratio = some / every
    return (
        f"{space.name}: a pass takes {every:.2f} s an image of all {len(space.flops)} stitches, {some:.2f} s of the "
        f"{len(kept)} left, {100 * ratio:.0f} %, which have {100 * flops:.0f} % of the FLOPs; two stages take "
        f"{_both(ratio):.0f} % of the time of one, for {_both(flops):.0f} % of the FLOPs"
    )


def _both(rest: float) -> float:
    """The share of one stage that two take, in percent, if the second has such a share of a pass of all stitches."""
    return 100 * (SHARE + (1 - SHARE) * rest)


def _seconds(run: OnePass, images: torch.Tensor) -> float:
    start = time.process_time()
    run(images)
    return time.process_time() - start


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("ledgers", nargs="+", metavar="CONFIGURATION=LEDGER")
    parser.add_argument("--images", type=int, default=4, metavar="N", help="of a pass")
    flags = parser.parse_args()
    try:
        for ledger in flags.ledgers:
            print(measure(read_space(ledger), flags.images), flush=True)
    except InputError as error:
        sys.exit(str(error))

"""The costs of the stitches of an SN-Net in a ledger, and the nodes where a model can be cut."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from stitchkit.display import aligned, counted, quantity
from stitchkit.distributed import choose_device
from stitchkit.errors import InputError
from stitchkit.measure.latency import add_latencies
from stitchkit.measure.latency_verdict import latency_note, unreliable
from stitchkit.measure.ledger import Row, cost_row, difference, write_rows
from stitchkit.measure.pareto import table
from stitchkit.measure.profile import Profiler
from stitchkit.model.create import create_snnet
from stitchkit.model.snnet import SNNet
from stitchkit.networks.create import bare_model
from stitchkit.networks.families import steps_of
from stitchkit.networks.meta import without_values
from stitchkit.parser import new_file


def complete(rows: Sequence[Row], model: SNNet, *, latency: bool) -> str:
    """Add missing figures to rows: name, FLOPs, parameters and, on request, latency; return the latency's note."""
    profiler = Profiler(model)
    for row in rows:
        if contradiction := difference(row, model.space, profiler.cost):
            advice = "give its own, or check --stitch-config, --num-classes and --img-size"
            raise InputError(f"the ledger belongs to another SN-Net: {contradiction}; {advice}")
        # The row wins: published parameter counts leave some out, and are compared with each other.
        row.update(cost_row(model.space, row["cfg_id"], profiler.cost(row["cfg_id"])) | row)
    if latency and lacks_latencies(rows):
        return add_latencies(rows, model, batch_size=1)
    return latency_note(rows) if latency else ""


def lacks_latencies(rows: Sequence[Row]) -> bool:
    """Whether latencies are missing, or their measurement called them unreliable."""
    return bool(unreliable(rows)) or any("latency_ms" not in row for row in rows)


def complete_here(rows: Sequence[Row], stitch_config: str, *, latency: bool, **sizes: Any) -> None:
    """`complete` rows by the SN-Net of a configuration on this machine's device; its weights do not matter."""
    model = create_snnet(stitch_config, checkpoints=False, **sizes)
    complete(rows, model.to(choose_device()), latency=latency)


def profile(flags: argparse.Namespace) -> None:
    """Run `stitchkit profile`."""
    if flags.nodes:
        _list_nodes(flags)
        return
    if flags.batch_size < 1:
        raise InputError(f"--batch-size is {flags.batch_size}; it must be at least 1")
    output = new_file(flags.output) if flags.output else None
    if bool(flags.stitch_config) == bool(flags.anchors):
        raise InputError("give either --stitch-config FILE or --anchors A,B; or --nodes MODEL, to see where to cut it")
    if flags.inside or flags.backend != "timm":
        raise InputError("--backend and --inside require --nodes MODEL; add it, or omit them")
    overrides = {"num_classes": flags.num_classes, "img_size": flags.img_size}
    # Costs need no memory for weights, which giants would fill; latencies do.
    with nullcontext() if flags.latency else without_values():
        model = create_snnet(flags.stitch_config, anchors=flags.anchors or (), checkpoints=False, **overrides)
    profiler = Profiler(model)
    rows = [cost_row(model.space, cfg_id, profiler.cost(cfg_id)) for cfg_id in model.space.ids]
    if flags.latency:
        model.to(choose_device(flags.device))
        print(add_latencies(rows, model, batch_size=flags.batch_size))
    print(table(rows))
    lowest, highest = (quantity(extreme(row["flops"] for row in rows)) for extreme in (min, max))
    print(f"{counted(len(rows), 'stitch')}, {lowest} to {highest} FLOPs; * marks anchors")
    if output is not None:
        write_rows(output, rows)
        print(f"the ledger is {output}")


def _list_nodes(flags: argparse.Namespace) -> None:
    for name in ("stitch_config", "anchors", "num_classes", "img_size", "output", "latency"):
        if getattr(flags, name):
            raise InputError(f"--{name.replace('_', '-')} has no effect on --nodes; remove one of the two")
    model, example = bare_model(flags.nodes, flags.backend)
    cells = [
        (f"{'*' if node.is_clean else ' '} {node.name}", node.kind, "x".join(map(str, node.shape or "-")))
        for node in steps_of(model).nodes(example, inside=flags.inside)
    ]
    print(aligned(cells, left={0, 1, 2}))
    print("* marks clean places: only one tensor passes from there to the rest of the model")

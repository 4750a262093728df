"""The commands that show costs and accuracies: `profile`, `pareto`."""

from __future__ import annotations

import argparse
from contextlib import nullcontext

from stitchkit.display import counted, plural, quantity
from stitchkit.errors import InputError
from stitchkit.measure.metric import add_metric_flag
from stitchkit.parser import Command, add_network_flags, add_shared, new_file


def _add_profile_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", metavar="FILE", help="also write the result as a ledger")
    parser.add_argument("--latency", action="store_true", help="also measure the latency of each stitch on this device")
    parser.add_argument("-b", "--batch-size", type=int, default=1, metavar="N", help="batch size for --latency")
    add_shared(parser, "--device")
    add_network_flags(parser)
    add_shared(parser, "--anchors")
    nodes = parser.add_argument_group("where a model can be cut, without data or weights")
    nodes.add_argument("--nodes", metavar="MODEL", help="instead, list the nodes of this model: the modules to cut at")
    nodes.add_argument("--backend", default="timm", help="with --nodes: library of the model, timm or torchvision")
    nodes.add_argument("--inside", action="append", default=[], metavar="PATH", help="list inner nodes of a block")


def _list_nodes(flags: argparse.Namespace) -> None:
    from stitchkit.display import aligned
    from stitchkit.networks.create import bare_model
    from stitchkit.networks.families import steps_of

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


def _profile(flags: argparse.Namespace) -> None:
    if flags.nodes:
        _list_nodes(flags)
        return

    from stitchkit.distributed import choose_device
    from stitchkit.measure.ledger import cost_row, write_rows
    from stitchkit.measure.pareto import table
    from stitchkit.measure.profile import Profiler
    from stitchkit.model.create import create_snnet
    from stitchkit.networks.meta import without_values

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
        from stitchkit.measure.latency import add_latencies  # slow to import

        model.to(choose_device(flags.device))
        print(add_latencies(rows, model, batch_size=flags.batch_size))
    print(table(rows))
    lowest, highest = (quantity(extreme(row["flops"] for row in rows)) for extreme in (min, max))
    print(f"{counted(len(rows), 'stitch')}, {lowest} to {highest} FLOPs; * marks anchors")
    if output is not None:
        write_rows(output, rows)
        print(f"the ledger is {output}")


def _add_pareto_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("ledger", metavar="FILE", help="a stitches_res.txt, ours or a published one")
    parser.add_argument(
        "--cost", choices=("flops", "params", "latency"), default="flops", help="the cost to compare by"
    )
    add_shared(parser, "--allow-unreliable")
    add_metric_flag(parser)
    add_shared(parser, "--overlay")
    parser.add_argument("--plot", metavar="FILE", help="also draw it, as .png, .svg or .pdf")


def _pareto(flags: argparse.Namespace) -> None:
    from stitchkit.measure.figure import check_plot
    from stitchkit.measure.intervals import add_intervals, compared_beside, told_apart_note
    from stitchkit.measure.latency_verdict import check_latencies, latency_note
    from stitchkit.measure.ledger import COSTS, WITH_INTERVALS, nouns_of, read_rows
    from stitchkit.measure.metric import by, compared, compared_note, metric_of
    from stitchkit.measure.overlay import read_overlay, verdict
    from stitchkit.measure.pareto import is_anchor, pareto_front, plot, table

    if flags.plot:
        check_plot(flags.plot)
    rows, cost = read_rows(flags.ledger), COSTS[flags.cost]
    metric = metric_of(rows, flags.metric)
    front = pareto_front(rows, cost, metric)
    known = compared_beside(flags.ledger, metric)
    add_intervals(rows, known, cost)
    if flags.cost == "latency":
        check_latencies(rows, allowed=flags.allow_unreliable)
    overlay = read_overlay(flags.overlay, [cost], metric) if flags.overlay else None
    print(table(front))
    for note in filter(None, [latency_note(rows), compared_note(rows, metric)]):
        print(note)
    network, uncut = nouns_of(rows)
    number = counted(len(rows), network)
    marks = f"; * marks {plural(uncut)}" if any(map(is_anchor, rows)) else ""
    print(f"the Pareto front{by(metric)} has {len(front)} of {number}{marks}")
    if metric in WITH_INTERVALS:
        print(told_apart_note(front, known, metric))
    if overlay:
        print(f"{verdict(front, overlay.models, cost)} {overlay.remark}")
    if flags.plot:
        shown = counted(len(compared(rows, metric)), network)
        plot(rows, flags.plot, title=shown, cost=cost, overlay=overlay, metric=metric)
        print(f"the plot is {flags.plot}")


profile = Command(_profile, "print FLOPs and parameters of every stitch, without data or weights", _add_profile_flags)
pareto = Command(_pareto, "print the Pareto front of a ledger, and optionally draw it", _add_pareto_flags)

"""The commands that show costs and accuracies: `profile`, `pareto`."""

from __future__ import annotations

import argparse

from stitchkit.measure.metric import add_metric_flag
from stitchkit.parser import Command, add_network_flags, add_shared


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


def _add_pareto_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("ledger", metavar="FILE", help="a stitches_res.txt, ours or a published one")
    parser.add_argument(
        "--cost", choices=("flops", "params", "latency"), default="flops", help="the cost to compare by"
    )
    add_shared(parser, "--allow-unreliable")
    add_metric_flag(parser)
    add_shared(parser, "--overlay")
    parser.add_argument("--plot", metavar="FILE", help="also draw it, as .png, .svg or .pdf")


profile = Command(
    "stitchkit.measure.costs:profile",
    "print FLOPs and parameters of every stitch, without data or weights",
    _add_profile_flags,
)
pareto = Command(
    "stitchkit.measure.pareto:run", "print the Pareto front of a ledger, and optionally draw it", _add_pareto_flags
)

"""The `nodes` command, which shows where a model can be cut."""

from __future__ import annotations

import argparse

from stitchkit.parser import Command


def _add_nodes_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="name of the model")
    about = "library of the model: timm, or torchvision (also called pytorch)"
    parser.add_argument("--backend", default="timm", help=about)
    parser.add_argument("--inside", action="append", default=[], metavar="PATH", help="list a block's inner nodes too")


def _nodes(flags: argparse.Namespace) -> None:
    from stitchkit.display import aligned
    from stitchkit.networks.create import bare_model
    from stitchkit.networks.families import steps_of

    model, example = bare_model(flags.model, flags.backend)
    cells = [
        (f"{'*' if node.is_clean else ' '} {node.name}", node.kind, "x".join(map(str, node.shape or "-")))
        for node in steps_of(model).nodes(example, inside=flags.inside)
    ]
    print(aligned(cells, left={0, 1, 2}))
    print("* marks clean places: only one tensor passes from there to the rest of the model")


nodes = Command(_nodes, "list the nodes of a model, and where it can be cut, without data or weights", _add_nodes_flags)

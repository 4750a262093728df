"""The commands. Each reads its flags, checks them and runs; bad input ends with one line and status 2."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from stitchkit.errors import InputError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: The command line without the program's name; by default that of the process.

    Returns:
        The exit status: 0, or 2 for bad input.
    """
    parser = _parser()
    flags = parser.parse_args(arguments)
    is_primary = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(level=logging.INFO if is_primary else logging.WARNING, format="%(message)s", stream=sys.stdout)
    command: Callable[[argparse.Namespace], None] = flags.command
    del flags.command
    try:
        command(flags)
    except InputError as error:
        # All ranks see the same bad input; one of them says so.
        if is_primary:
            print(f"stitchkit: error: {error}", file=sys.stderr, flush=True)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="stitchkit", description="Stitch pretrained vision networks.", allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    from stitchkit.train.flags import add_flags

    train = commands.add_parser("train", help="train an SN-Net or a model, or evaluate it with --eval", allow_abbrev=False)
    add_flags(train)
    train.set_defaults(command=_train)

    profile = commands.add_parser("profile", help="FLOPs and parameters of every stitch, without data or weights")
    profile.add_argument("--stitch_config", "--stitch-config", required=True, metavar="JSON", help="stitch configuration")
    profile.add_argument("--output", required=True, metavar="FILE", help="ledger to write")
    profile.add_argument("--num-classes", type=int, metavar="N", help="number of classes; by default the models'")
    profile.add_argument("--img-size", type=int, metavar="N", help="side of the input image; by default the models'")
    profile.set_defaults(command=_profile)

    pareto = commands.add_parser("pareto", help="print the Pareto front of a ledger, or draw it")
    pareto.add_argument("ledger", metavar="FILE", help="a stitches_res.txt, ours or a published one")
    pareto.add_argument("--plot", metavar="FILE", help="also draw it, as .png, .svg or .pdf")
    pareto.set_defaults(command=_pareto)

    demo = commands.add_parser("demo-data", help="write scikit-learn's handwritten digits as an image folder")
    demo.add_argument("folder", metavar="DIR", help="folder to write, e.g. data/digits")
    demo.set_defaults(command=_demo_data)
    return parser


def _train(flags: argparse.Namespace) -> None:
    from stitchkit.train.flags import resolve
    from stitchkit.train.run import run

    recipe, config = resolve(vars(flags))
    run(recipe, config)


def _profile(flags: argparse.Namespace) -> None:
    from stitchkit.measure.ledger import cost_row, write_rows
    from stitchkit.measure.profile import Profiler
    from stitchkit.model.create import create_snnet

    model = create_snnet(flags.stitch_config, num_classes=flags.num_classes, img_size=flags.img_size)
    profiler = Profiler(model)
    rows = [cost_row(model.space, cfg_id, profiler.cost(cfg_id)) for cfg_id in range(len(model.space))]
    if Path(flags.output).exists():
        raise InputError(f"'{flags.output}' exists; choose another --output or remove it")
    write_rows(flags.output, rows)
    print(f"{len(rows)} stitches are in {flags.output}")


def _pareto(flags: argparse.Namespace) -> None:
    from stitchkit.measure.ledger import read_rows
    from stitchkit.measure.pareto import pareto_front, plot, table

    rows = read_rows(flags.ledger)
    front = pareto_front(rows)
    print(table(front))
    print(f"{len(front)} of {len(rows)} stitches are on the Pareto front; * marks anchors")
    if flags.plot:
        plot(rows, flags.plot, title=f"{len(rows)} stitches")
        print(f"the plot is {flags.plot}")


def _demo_data(flags: argparse.Namespace) -> None:
    from stitchkit.train.digits import write_digits

    write_digits(Path(flags.folder))

"""The commands. Each reads its flags, checks them and runs; bad input ends with one line and status 2."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from stitchkit.errors import InputError, unknown


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: The command line without the program's name; by default that of the process.

    Returns:
        The exit status: 0, 2 for bad input, or 130 after Ctrl-C.
    """
    is_primary = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(level=logging.INFO if is_primary else logging.ERROR, format="%(message)s", stream=sys.stdout)
    try:
        flags, rest = _parser().parse_known_args(arguments)
        settings = vars(flags)
        command: Callable[[dict[str, Any]], None] = settings.pop("command")
        allowed: list[str] = settings.pop("allowed")
        if rest:
            is_flag = rest[0].startswith("-")
            raise (
                unknown("flag", rest[0].split("=")[0], allowed)
                if is_flag
                else InputError(
                    f"'{rest[0]}' is one argument too many; give one DATA folder, and a value after each flag"
                )
            )
        command(settings)
    except InputError as error:
        _report(error)
        return 2
    except OSError as error:
        if error.filename is None:
            raise
        _report(InputError(f"'{error.filename}': {error.strerror}; check the path, its permissions and the disk"))
        return 2
    except KeyboardInterrupt:
        if is_primary:
            print(
                "stitchkit: stopped; an evaluation goes on when the command is given again, a training run from its "
                "last finished epoch with --resume",
                file=sys.stderr,
            )
        return 130
    return 0


def _report(error: InputError) -> None:
    """Say what was wrong, once: under a launcher each rank hands its error over, and the launcher prints the first."""
    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        get_error_handler().record_exception(error)
    else:
        print(f"stitchkit: error: {error}", file=sys.stderr)


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are like all others."""

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print and exit for."""
        raise InputError(f"{message}; see {self.prog} --help")


def _parser() -> _Parser:
    from stitchkit.train.flags import add_flags

    about = "Stitch pretrained vision networks: every trade-off between cost and accuracy."
    parser = _Parser(prog="stitchkit", description=about, allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: Callable[[dict[str, Any]], None], about: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=about, description=about, allow_abbrev=False)
        command.set_defaults(command=run)
        return command

    train = add("train", _train, "train an SN-Net or a model, or evaluate it with --eval")
    add_flags(train)

    profile = add("profile", _profile, "print FLOPs and parameters of every stitch, without data or weights")
    profile.add_argument("--output", metavar="FILE", help="also write it as a ledger")
    profile.add_argument("--latency", action="store_true", help="also measure how long each takes on this device")
    profile.add_argument("-b", "--batch-size", type=int, default=1, metavar="N", help="batch of --latency")
    profile.add_argument("--device", metavar="DEVICE", help="cpu or cuda; by default cuda where there is one")

    convert = add("convert", _convert, "rewrite a released checkpoint under our names, as safetensors")
    convert.add_argument("checkpoint", metavar="IN", help="a released file, or one of ours")
    convert.add_argument("output", metavar="OUT.safetensors", help="file to write")
    for command in (profile, convert):
        command.add_argument(
            "--stitch_config", "--stitch-config", required=True, metavar="JSON", help="stitch configuration"
        )
        command.add_argument("--num-classes", type=int, metavar="N", help="number of classes; by default the models'")
        command.add_argument(
            "--img-size", type=int, metavar="N", help="side of the input image; by default the models'"
        )

    pareto = add("pareto", _pareto, "print the Pareto front of a ledger, and on request draw it")
    pareto.add_argument("ledger", metavar="FILE", help="a stitches_res.txt, ours or a published one")
    pareto.add_argument("--plot", metavar="FILE", help="also draw it, as .png, .svg or .pdf")

    demo = add("demo-data", _demo_data, "write scikit-learn's handwritten digits as an image folder")
    demo.add_argument("folder", metavar="DIR", help="folder to write, e.g. data/digits")

    for command in (train, profile, convert, pareto, demo):
        command.set_defaults(allowed=[name for action in command._actions for name in action.option_strings])
    return parser


def _train(settings: dict[str, Any]) -> None:
    from stitchkit.train.flags import resolve
    from stitchkit.train.run import run

    recipe, config = resolve(settings)
    run(recipe, config)


def _profile(settings: dict[str, Any]) -> None:
    from stitchkit.measure.ledger import cost_row, write_rows
    from stitchkit.measure.pareto import table
    from stitchkit.measure.profile import Profiler
    from stitchkit.model.create import create_snnet

    output = _new_file(settings["output"]) if settings["output"] else None
    model = create_snnet(settings["stitch_config"], num_classes=settings["num_classes"], img_size=settings["img_size"])
    profiler = Profiler(model)
    rows = [cost_row(model.space, cfg_id, profiler.cost(cfg_id)) for cfg_id in range(len(model.space))]
    if settings["latency"]:
        from stitchkit.distributed import choose_device
        from stitchkit.measure.latency import add_latencies

        if settings["batch_size"] < 1:
            raise InputError(f"--batch-size is {settings['batch_size']}; it must be at least 1")
        model.to(choose_device(settings["device"]))
        print(add_latencies(rows, model, batch_size=settings["batch_size"]))
    print(table(rows))
    print(f"{len(rows)} stitches; * marks anchors")
    if output is not None:
        write_rows(output, rows)
        print(f"the ledger is {output}")


def _convert(settings: dict[str, Any]) -> None:
    from safetensors.torch import save

    from stitchkit.config import StitchConfig
    from stitchkit.model.create import create_snnet
    from stitchkit.model.weights import load_checkpoint

    output = _new_file(settings["output"])
    if output.suffix != ".safetensors":
        raise InputError(f"'{output}' is to be a safetensors file; let its name end with .safetensors")
    config = StitchConfig.load(settings["stitch_config"])
    model = create_snnet(config, num_classes=settings["num_classes"], img_size=settings["img_size"])
    load_checkpoint(model, settings["checkpoint"])
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    about = {"format": "pt", "stitch_config": json.dumps(config.to_dict()), "source": settings["checkpoint"]}
    output.write_bytes(save(weights, metadata=about))
    print(f"{len(weights)} tensors are in {output}; use it as --resume with --eval, or in stitchkit.load_checkpoint")


def _new_file(path: str) -> Path:
    if Path(path).exists():
        raise InputError(f"'{path}' exists; choose another file or remove it")
    if not Path(path).parent.is_dir():
        raise InputError(f"folder '{Path(path).parent}' does not exist; make it, or check the path")
    return Path(path)


def _pareto(settings: dict[str, Any]) -> None:
    from stitchkit.measure.ledger import read_rows
    from stitchkit.measure.pareto import pareto_front, plot, table

    rows = read_rows(settings["ledger"])
    front = pareto_front(rows)
    print(table(front))
    print(f"{len(front)} of {len(rows)} stitches are on the Pareto front; * marks anchors")
    if settings["plot"]:
        plot(rows, settings["plot"], title=f"{len(rows)} stitches")
        print(f"the plot is {settings['plot']}")


def _demo_data(settings: dict[str, Any]) -> None:
    from stitchkit.train.digits import write_digits

    write_digits(Path(settings["folder"]))

"""The commands of the core: train, profile, nodes, convert, pareto, demo-data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stitchkit.errors import InputError
from stitchkit.files import replacing
from stitchkit.parser import Commands, new_file


def add_commands(commands: Commands) -> None:
    """Add them to the parser."""
    from stitchkit.settings.flags import add_flags

    train = commands.add("train", _train, "train an SN-Net or a model, or evaluate it with --eval")
    add_flags(train)

    profile = commands.add("profile", _profile, "print FLOPs and parameters of every stitch, without data or weights")
    profile.add_argument("--output", metavar="FILE", help="also write it as a ledger")
    profile.add_argument("--latency", action="store_true", help="also measure how long each takes on this device")
    profile.add_argument("-b", "--batch-size", type=int, default=1, metavar="N", help="batch of --latency")
    profile.add_argument("--device", metavar="DEVICE", help="cpu or cuda; by default cuda where there is one")

    convert = commands.add("convert", _convert, "rewrite a released checkpoint under our names, as safetensors")
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

    nodes = commands.add("nodes", _nodes, "list the nodes of a model, and where it can be cut, without data or weights")
    nodes.add_argument("model", metavar="MODEL", help="name of the model")
    nodes.add_argument("--backend", default="timm", help="where it is from: timm, or torchvision, also called pytorch")
    nodes.add_argument("--inside", action="append", default=[], metavar="PATH", help="list a block's inner nodes too")

    pareto = commands.add("pareto", _pareto, "print the Pareto front of a ledger, and on request draw it")
    pareto.add_argument("ledger", metavar="FILE", help="a stitches_res.txt, ours or a published one")
    pareto.add_argument("--plot", metavar="FILE", help="also draw it, as .png, .svg or .pdf")

    demo = commands.add("demo-data", _demo_data, "write scikit-learn's handwritten digits as an image folder")
    demo.add_argument("folder", metavar="DIR", help="folder to write, e.g. data/digits")


def _train(settings: dict[str, Any]) -> None:
    from stitchkit.settings.flags import resolve
    from stitchkit.train.run import run

    recipe, config = resolve(settings)
    run(recipe, config)


def _profile(settings: dict[str, Any]) -> None:
    from stitchkit.measure.ledger import cost_row, write_rows
    from stitchkit.measure.pareto import table
    from stitchkit.measure.profile import Profiler
    from stitchkit.model.create import create_snnet

    output = new_file(settings["output"]) if settings["output"] else None
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


def _nodes(settings: dict[str, Any]) -> None:
    from stitchkit.networks.anchor import steps_of
    from stitchkit.networks.cut.nodes import library_model, table

    model, example = library_model(settings["model"], settings["backend"])
    print(table(steps_of(model).nodes(example, inside=settings["inside"])))
    print("* marks clean places: one tensor alone passes from there to the rest of the model")


def _convert(settings: dict[str, Any]) -> None:
    from safetensors.torch import save

    from stitchkit.model.create import create_snnet
    from stitchkit.networks.weights import load_checkpoint
    from stitchkit.settings.stitch_config import StitchConfig

    output = new_file(settings["output"])
    if output.suffix != ".safetensors":
        raise InputError(f"'{output}' must be a safetensors file; give a name that ends with .safetensors")
    config = StitchConfig.load(settings["stitch_config"])
    model = create_snnet(config, num_classes=settings["num_classes"], img_size=settings["img_size"])
    load_checkpoint(model, settings["checkpoint"])
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    about = {"format": "pt", "stitch_config": json.dumps(config.to_dict()), "source": settings["checkpoint"]}
    with replacing(output) as draft:
        draft.write_bytes(save(weights, metadata=about))
    print(f"{len(weights)} tensors are in {output}; use it as --resume with --eval, or in stitchkit.load_checkpoint")


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
    from stitchkit.data.digits import write_digits

    write_digits(Path(settings["folder"]))

"""The commands that take a stitch from the ledger into use: pick, export."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from stitchkit.errors import InputError
from stitchkit.parser import Commands, new_file

_IMAGES = 64
"""Images that an export is checked on."""


def add_commands(commands: Commands) -> None:
    """Add them to the parser."""
    pick = commands.add("pick", _pick, "name the best stitch of a ledger within a budget")
    pick.add_argument("ledger", metavar="LEDGER", help="a stitches_res.txt, ours or a published one")
    _add_budget(pick)
    pick.add_argument("--json", action="store_true", help="print JSON, for scripts")
    pick.add_argument(
        "--stitch_config", "--stitch-config", metavar="JSON",
        help="stitch configuration of the ledger: adds names and parameters; with --max-latency-ms, latencies here",
    )  # fmt: skip
    _add_shape(pick)

    export = commands.add("export", _export, "write one stitch to a file, checked against its SN-Net")
    add_trained(
        export, data_for=f"{_IMAGES} of its validation images are what file and SN-Net are compared on, else noise"
    )
    export.add_argument("--cfg_id", "--cfg-id", type=int, metavar="N", help="the stitch")
    export.add_argument("--ledger", metavar="FILE", help="or the best stitch of this ledger within the budget below")
    _add_budget(export)
    export.add_argument(
        "-o", "--output", required=True, metavar="FILE", help="file to write: .safetensors, .onnx or .pt2"
    )


def add_trained(parser: argparse.ArgumentParser, *, data_for: str) -> None:
    """Give a parser what tells a trained SN-Net, as `stitchkit.ship.trained_snnet.open_trained` takes it.

    Args:
        parser: Of a command.
        data_for: What images are used for.
    """
    parser.add_argument("--stitch_config", "--stitch-config", metavar="JSON", help="stitch configuration")
    parser.add_argument("--resume", metavar="CHECKPOINT", help="trained weights, ours or released ones")
    parser.add_argument("--data", dest="data_dir", metavar="DIR", help=f"image folder; {data_for}")
    parser.add_argument("-c", "--config", metavar="YAML", help="settings of the run, such as its args.yaml")
    parser.add_argument(
        "--recalibrate-bn", type=int, metavar="N", help="batch-norm statistics from N training batches, as in --eval"
    )
    parser.add_argument("--model-ema", action="store_true", default=None, help="use the moving average of weights")
    _add_shape(parser)


def _add_budget(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--max-flops", metavar="N", help="most multiply-adds of an image, such as 5G")
    parser.add_argument("--max-params", metavar="N", help="most parameters, such as 30M")
    parser.add_argument("--max-latency-ms", type=float, metavar="MS", help="most milliseconds")
    parser.add_argument("--min-acc1", type=float, metavar="PERCENT", help="least top-1 accuracy")


def _add_shape(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--num-classes", type=int, metavar="N", help="number of classes; by default the models'")
    parser.add_argument("--img-size", type=int, metavar="N", help="side of the input image; by default the models'")


def _pick(settings: dict[str, Any]) -> None:
    from stitchkit.measure.ledger import read_rows
    from stitchkit.measure.pareto import table
    from stitchkit.ship.pick import pick, refusal
    from stitchkit.ship.report import take_away

    budget, rows, note = _budget(settings), read_rows(settings["ledger"]), ""
    if settings["stitch_config"]:
        note = _complete(rows, settings, latency=budget.max_latency_ms is not None)
    elif settings["num_classes"] or settings["img_size"]:
        raise InputError("--num-classes and --img-size are of a configuration; add --stitch_config, or leave them out")
    choice = pick(rows, budget)
    if settings["json"]:
        # JSON has no NaN, which a loss may be.
        found = json.loads(json.dumps(choice._asdict()), parse_constant=lambda _: None)
        print(json.dumps({**found, "stitches": len(rows), "budget": budget.limits}, allow_nan=False))
    if choice.best is None:
        raise InputError(refusal(len(rows), budget, choice))
    if settings["json"]:
        return
    fit = f"{choice.fitting} of {len(rows)} stitches have {budget}" if budget.limits else f"of {len(rows)} stitches"
    print(f"cfg_id {choice.best['cfg_id']} is the best: {fit}")
    print(table([choice.best, *choice.runners_up]))
    if note:
        print(note)
    number = choice.best["cfg_id"]
    (command,) = take_away(Path(settings["ledger"]), [number], settings["stitch_config"])
    print(f"next, take it away: {command}")


def _budget(settings: dict[str, Any]) -> Any:
    from stitchkit.display import count
    from stitchkit.ship.pick import Budget

    counts = {key: count(settings[key]) for key in ("max_flops", "max_params") if settings[key] is not None}
    return Budget.of(settings | counts)


def _complete(rows: list[dict[str, Any]], settings: dict[str, Any], *, latency: bool) -> str:
    from stitchkit.distributed import choose_device
    from stitchkit.model.create import create_snnet
    from stitchkit.ship.pick import complete

    model = create_snnet(settings["stitch_config"], num_classes=settings["num_classes"], img_size=settings["img_size"])
    return complete(rows, model.to(choose_device()), latency=latency)


def _export(settings: dict[str, Any]) -> None:
    from stitchkit.ship.export import export
    from stitchkit.ship.stitch_files import format_of
    from stitchkit.ship.trained_snnet import calibrated, describe, open_trained, sample_images

    output = settings.pop("output")
    format_of(output), new_file(output)
    cfg_id, ledger, budget = _take_choice(settings)
    trained = open_trained({key: value for key, value in settings.items() if value is not None})
    if ledger is not None:
        cfg_id = _best(ledger, budget, trained)
    assert cfg_id is not None, "either is given"
    stitch = trained.model.resolve(cfg_id)
    images, source = sample_images(trained, _IMAGES)
    net = calibrated(trained, cfg_id) if trained.recipe.run.recalibrate_bn else None
    report = export(trained.model, cfg_id, output, images, describe(trained, cfg_id), net=net)
    print(f"stitch {cfg_id}, {stitch}, is in {output}; compared on {report.images} {source}:")
    print(f"  largest difference {report.largest_difference:.2g} of logits up to {report.largest_logit:.3g}")
    print(f"  same top-1 class on {report.same_top1} of {report.images}")
    for name, size, latency in (
        ("SN-Net (all weights)", report.snnet_bytes, report.snnet_ms),
        (Path(output).name, report.file_bytes, report.file_ms),
    ):
        print(f"  {name:20}  {size / 2**20:8.2f} MiB  {latency:8.2f} ms an image on this CPU")


def _take_choice(settings: dict[str, Any]) -> tuple[int | None, str | None, Any]:
    """The `cfg_id`, or the ledger and the budget that choose it; they are taken out of the settings."""
    cfg_id, ledger, budget = settings.pop("cfg_id"), settings.pop("ledger"), _budget(settings)
    for limit in ("max_flops", "max_params", "max_latency_ms", "min_acc1"):
        settings.pop(limit)
    if (cfg_id is None) == (ledger is None):
        raise InputError("give either --cfg_id N, or --ledger FILE with a budget such as --max-flops 5G")
    if cfg_id is not None and budget.limits:
        raise InputError(f"--cfg_id {cfg_id} is a stitch already; leave the budget out, or give --ledger instead")
    return cfg_id, ledger, budget


def _best(ledger: str, budget: Any, trained: Any) -> int:
    """The `cfg_id` of the best stitch of a ledger that was measured with these weights."""
    from stitchkit.measure.ledger import read_rows
    from stitchkit.ship.pick import complete, pick_one
    from stitchkit.ship.trained_snnet import check_origin

    check_origin(ledger, trained)
    rows = read_rows(ledger)
    note = complete(rows, trained.model, latency=budget.max_latency_ms is not None)
    row = pick_one(rows, budget)
    if note:
        print(note)
    if not budget.limits:
        print(f"no budget was given; the most accurate of all {len(rows)} stitches is taken")
    return int(row["cfg_id"])

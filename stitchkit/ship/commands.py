"""The commands that put stitches of a ledger to use: `pick`, `export`, `predict`, `report`, `serve`."""

from __future__ import annotations

import argparse
from dataclasses import asdict, fields
from pathlib import Path

from pydantic.dataclasses import dataclass

from stitchkit.display import count
from stitchkit.errors import InputError
from stitchkit.measure.metric import add_metric_flag
from stitchkit.parser import DATA_FLAGS, Command, add_network_flags, add_shared, at_least, new_file
from stitchkit.settings.fields import Batch, Count, Workers
from stitchkit.settings.schema import Settings, flag_of, parse

IMAGES = 64
"""Number of images for the check of an export."""
CALIBRATION = 128
"""Number of training images that set the ranges of an export in int8."""


def _add_trained(parser: argparse.ArgumentParser, *, data_for: str) -> None:
    """Add the flags of a trained SN-Net; `data_for` is the use of the images."""
    add_network_flags(parser)
    parser.add_argument("--resume", metavar="CHECKPOINT", help="trained weights, ours or released ones")
    parser.add_argument(*DATA_FLAGS, dest="data_dir", metavar="DIR", help=f"image folder; {data_for}")
    parser.add_argument("-c", "--config", metavar="YAML", help="settings of the run, such as its args.yaml")
    about = "recompute batch-norm statistics from N batches of 32 training images (dense: 8); default: as in --eval"
    parser.add_argument("--recalibrate-bn", type=int, metavar="N", help=about)
    parser.add_argument("--model-ema", action="store_true", default=None, help="use the moving average of weights")


def _add_budget(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--max-flops", type=count, metavar="N", help="limit on multiply-adds per image, such as 5G")
    parser.add_argument("--max-params", type=count, metavar="N", help="limit on parameters, such as 30M")
    parser.add_argument("--max-latency-ms", type=float, metavar="MS", help="limit on latency in milliseconds")
    parser.add_argument("--min-acc1", type=float, metavar="PERCENT", help="minimum top-1 accuracy")
    about = "take the cheapest stitch that is statistically tied with the most accurate one within the budget"
    parser.add_argument("--confident", action="store_true", help=about)
    add_metric_flag(parser)
    add_shared(parser, "--allow-unreliable")


def _add_pick_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("ledger", metavar="LEDGER", help="a stitches_res.txt, ours or a published one")
    _add_budget(parser)
    add_shared(parser, "--overlay")
    parser.add_argument("--json", action="store_true", help="print JSON, for scripts")
    about = "stitch configuration: adds names, parameters and, with --max-latency-ms, latencies measured here"
    add_network_flags(parser, config=about)


def _add_export_flags(parser: argparse.ArgumentParser) -> None:
    use = f"file and SN-Net are compared on {IMAGES} of its validation images, otherwise on noise"
    _add_trained(parser, data_for=use)
    parser.add_argument("--cfg-id", "--cfg_id", type=int, metavar="N", help="cfg_id of the stitch to export")
    parser.add_argument("--ledger", metavar="FILE", help="instead of --cfg-id: take the best stitch of this ledger")
    _add_budget(parser)
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="file: .safetensors, .onnx or .pt2")
    about = f"quantise the .onnx file to 8-bit integers, calibrated on {CALIBRATION} training images of --data"
    parser.add_argument("--int8", action="store_true", help=about)
    parser.add_argument("--opset", type=at_least(1), metavar="N", help="operator set of the .onnx file; else torch's")


@dataclass(frozen=True)
class PredictSettings(Settings):
    """How images are predicted; each setting is a flag of `stitchkit predict`."""

    top: Count = 5
    batch_size: Batch = 32
    workers: Workers = 4


def _add_predict_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", help="folder of images, with or without class folders")
    about = "CSV file to write, e.g. predictions.csv; of networks that predict for each pixel, a folder for their maps"
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help=about)
    _add_trained(parser, data_for="supplies class names if the checkpoint has none")
    parser.add_argument("--cfg-id", "--cfg_id", type=int, metavar="N", help="cfg_id of the stitch that predicts")
    parser.add_argument(
        "--exported", metavar="FILE", help="a file of stitchkit export, in place of SN-Net and --cfg-id"
    )
    parser.add_argument("--top", type=int, metavar="K", help="number of classes for each image")
    parser.add_argument("-b", "--batch-size", type=int, metavar="N", help="images, or windows of them, at a time")
    parser.add_argument("-j", "--workers", type=int, metavar="N", help="loader processes, at most one for each core")
    parser.set_defaults(**asdict(PredictSettings()))
    add_shared(parser, "--device")


def _check_predict(flags: argparse.Namespace) -> tuple[argparse.Namespace, PredictSettings, Path]:
    options = {field.name: getattr(flags, field.name) for field in fields(PredictSettings)}
    settings = parse(PredictSettings, options, name=flag_of)
    if (flags.exported is None) == (flags.cfg_id is None):
        raise InputError("give either --cfg-id N with an SN-Net (--stitch-config and --resume), or --exported FILE")
    output = new_file(flags.output)
    if output.suffix.lower() not in (".csv", ""):
        raise InputError(f"'{output}' must be a CSV file; give a name that ends with .csv, or a folder for maps")
    return flags, settings, output


def _add_report_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("ledgers", nargs="+", metavar="LEDGER", help="a stitches_res.txt, ours or a published one")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="page to write, e.g. report.html")
    parser.add_argument("--plot", "--png", metavar="FILE", help="also draw it for a paper, as .png, .svg or .pdf")
    parser.add_argument(
        "--stitch-config", "--stitch_config", metavar="CONFIG", help="names stitches of published ledgers"
    )
    parser.add_argument("--title", default="", metavar="TEXT", help="title of the page")
    add_metric_flag(parser)
    add_shared(parser, "--overlay", "--allow-unreliable")


def _add_serve_flags(parser: argparse.ArgumentParser) -> None:
    _add_trained(parser, data_for="supplies class names if the checkpoint has none")
    parser.add_argument("--ledger", required=True, metavar="FILE", help="ledger that --eval wrote for this SN-Net")
    parser.add_argument("--port", type=int, metavar="N", help="port; by default the first free one from 7860")
    add_shared(parser, "--device")


pick = Command("stitchkit.ship.pick:run", "name the best stitch of a ledger within a budget", _add_pick_flags)
export = Command(
    "stitchkit.ship.export:run",
    "write one stitch to a file, checked against its SN-Net",
    _add_export_flags,
    check="stitchkit.ship.formats:check_output",
)
predict = Command(
    "stitchkit.ship.predict:run",
    "predict the classes of images in a folder, or a map of each",
    _add_predict_flags,
    check=_check_predict,
)
report = Command(
    "stitchkit.ship.report:run", "write ledgers as one page: plot, table, training curves", _add_report_flags
)
serve = Command(
    "stitchkit.ship.serve:run", "try an SN-Net in the browser: an image, a budget, a prediction", _add_serve_flags
)

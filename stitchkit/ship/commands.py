"""The commands that put stitches of a ledger to use: `pick`, `export`, `predict`, `report`, `serve`."""

from __future__ import annotations

import argparse
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic.dataclasses import dataclass

from stitchkit.display import count, counted
from stitchkit.errors import InputError
from stitchkit.measure.metric import add_metric_flag
from stitchkit.parser import DATA_FLAGS, Command, add_network_flags, add_shared, at_least, new_file
from stitchkit.settings.fields import Batch, Count, Workers
from stitchkit.settings.schema import Settings, parse

if TYPE_CHECKING:
    from stitchkit.ship.pick import Budget
    from stitchkit.ship.predictors import MapPredictor, Predictor
    from stitchkit.ship.trained_snnet import Trained

_IMAGES = 64  # number of images for the check of an export
_CALIBRATION = 128  # number of training images that set the ranges of an export in int8


def _add_trained(parser: argparse.ArgumentParser, *, data_for: str) -> None:
    """Add the flags of a trained SN-Net; `data_for` is the use of the images."""
    add_network_flags(parser)
    parser.add_argument("--resume", metavar="CHECKPOINT", help="trained weights, ours or released ones")
    parser.add_argument(*DATA_FLAGS, dest="data_dir", metavar="DIR", help=f"image folder; {data_for}")
    parser.add_argument("-c", "--config", metavar="YAML", help="settings of the run, such as its args.yaml")
    about = "recompute batch-norm statistics from N batches of 32 training images (dense: 8); default: as in --eval"
    parser.add_argument("--recalibrate-bn", type=int, metavar="N", help=about)
    parser.add_argument("--model-ema", action="store_true", default=None, help="use the moving average of weights")


def _trained(flags: argparse.Namespace, *, cfg_id: int | None = None) -> Trained:
    """The SN-Net of the flags that `_add_trained` adds, with a stitch of this number if one is given."""
    from stitchkit.measure.ledger_origin import origin_file, read_origin
    from stitchkit.ship.trained_snnet import open_trained

    names = ("stitch_config", "num_classes", "img_size", "resume", "data_dir", "config", "recalibrate_bn", "model_ema")
    settings = {name: value for name in names if (value := getattr(flags, name)) is not None}
    ledger = getattr(flags, "ledger", None)
    if ledger is not None and origin_file(ledger).is_file():  # by default as it was measured
        origin = read_origin(ledger, advice="remove it")
        settings = {"recalibrate_bn": origin["recalibrate_bn"], **settings}
    return open_trained(settings, cfg_id=cfg_id, ledger=ledger)


def _add_budget(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--max-flops", type=count, metavar="N", help="limit on multiply-adds per image, such as 5G")
    parser.add_argument("--max-params", type=count, metavar="N", help="limit on parameters, such as 30M")
    parser.add_argument("--max-latency-ms", type=float, metavar="MS", help="limit on latency in milliseconds")
    parser.add_argument("--min-acc1", type=float, metavar="PERCENT", help="minimum top-1 accuracy")
    about = "take the cheapest stitch that is statistically tied with the most accurate one within the budget"
    parser.add_argument("--confident", action="store_true", help=about)
    add_metric_flag(parser)
    add_shared(parser, "--allow-unreliable")


def _budget(flags: argparse.Namespace) -> Budget:
    from stitchkit.ship.pick import Budget

    return Budget(flags.max_flops, flags.max_params, flags.max_latency_ms, flags.min_acc1)


def _add_pick_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("ledger", metavar="LEDGER", help="a stitches_res.txt, ours or a published one")
    _add_budget(parser)
    add_shared(parser, "--overlay")
    parser.add_argument("--json", action="store_true", help="print JSON, for scripts")
    about = "stitch configuration: adds names, parameters and, with --max-latency-ms, latencies measured here"
    add_network_flags(parser, config=about)


def _pick(flags: argparse.Namespace) -> None:
    from stitchkit.measure.intervals import add_intervals, compared_beside
    from stitchkit.measure.latency_verdict import latency_note
    from stitchkit.measure.ledger import read_rows, strict_json
    from stitchkit.measure.metric import compared_note, metric_of
    from stitchkit.measure.overlay import better_single_model, comparison, read_overlay
    from stitchkit.measure.pareto import table
    from stitchkit.ship.export_command import export_commands
    from stitchkit.ship.pick import confident_by_image, pick, refusal, verdict

    budget, rows = _budget(flags), read_rows(flags.ledger)
    metric = metric_of(rows, flags.metric)
    costs = [*budget.costs] or ["flops"]
    overlay = read_overlay(flags.overlay, costs, metric, every=True) if flags.overlay else None
    confident = confident_by_image(rows, flags.ledger, budget, metric) if flags.confident else None
    if flags.stitch_config:
        from stitchkit.distributed import choose_device  # torch, which a ledger alone does not need
        from stitchkit.model.create import create_snnet
        from stitchkit.ship.budgeted import complete

        sizes = {"num_classes": flags.num_classes, "img_size": flags.img_size}
        model = create_snnet(flags.stitch_config, checkpoints=False, **sizes)
        complete(rows, model.to(choose_device()), latency=budget.max_latency_ms is not None)
    elif flags.num_classes is not None or flags.img_size:
        raise InputError("--num-classes and --img-size require --stitch-config; add it, or omit them")
    add_intervals(rows, confident or compared_beside(flags.ledger, metric), budget.cost)
    choice = pick(rows, budget, metric=metric, allow_unreliable=flags.allow_unreliable, confident=confident)
    rival = better_single_model(choice.best, budget.costs, overlay.models) if overlay and choice.best else None
    # Printed even if no stitch fits: scripts then find the nearest miss in it.
    if flags.json:
        content = {**choice._asdict(), "stitches": len(rows), "budget": budget.limits}
        print(strict_json(content | {"better_single_model": rival} if overlay else content))
    if choice.best is None:
        raise InputError(refusal(rows, budget, choice))
    if flags.json:
        return
    print(verdict(rows, budget, choice))
    if overlay:
        print(comparison(choice.best, rival, overlay))
    shown = [choice.best, *choice.runners_up]
    print(table(shown))
    for note in filter(None, [latency_note(shown), compared_note(rows, metric)]):
        print(note)
    (command,) = export_commands(Path(flags.ledger), [choice.best["cfg_id"]], flags.stitch_config)
    print(f"next, export it: {command}")


def _add_export_flags(parser: argparse.ArgumentParser) -> None:
    use = f"file and SN-Net are compared on {_IMAGES} of its validation images, otherwise on noise"
    _add_trained(parser, data_for=use)
    parser.add_argument("--cfg-id", "--cfg_id", type=int, metavar="N", help="cfg_id of the stitch to export")
    parser.add_argument("--ledger", metavar="FILE", help="instead of --cfg-id: take the best stitch of this ledger")
    _add_budget(parser)
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="file: .safetensors, .onnx or .pt2")
    about = f"quantise the .onnx file to 8-bit integers, calibrated on {_CALIBRATION} training images of --data"
    parser.add_argument("--int8", action="store_true", help=about)
    parser.add_argument("--opset", type=at_least(1), metavar="N", help="operator set of the .onnx file; else torch's")


def _export(flags: argparse.Namespace) -> None:
    from stitchkit.ship.formats import suffix_of

    # Before anything is loaded, even torch: a wrong suffix must not cost the user a wait.
    suffix_of(flags.output, int8=flags.int8, opset=flags.opset)
    new_file(flags.output)
    from stitchkit.ship.export import export
    from stitchkit.ship.trained_snnet import calibrate, describe, sample_images

    output, cfg_id, budget = flags.output, flags.cfg_id, _budget(flags)
    if (cfg_id is None) == (flags.ledger is None):
        raise InputError("give either --cfg-id N, or --ledger FILE with a budget such as --max-flops 5G")
    if cfg_id is not None and (budget.limits or flags.metric or flags.confident):
        what = "the budget" if budget.limits else "the metric" if flags.metric else "--confident"
        raise InputError(f"--cfg-id {cfg_id} already names a stitch; omit {what}, or give --ledger instead")
    trained = _trained(flags, cfg_id=cfg_id)
    if flags.int8 and not trained.has_data:
        raise InputError("--int8 needs training images, whose activations set its ranges; add --data DIR")
    cfg_id = _best(flags, budget, trained) if cfg_id is None else cfg_id
    stitch = trained.model.resolve(cfg_id)
    images, source = sample_images(trained, _IMAGES)
    calibrate(trained, cfg_id)
    calibration = sample_images(trained, _CALIBRATION, train=True)[0] if flags.int8 else None
    about = describe(trained, cfg_id)
    report = export(trained.model, cfg_id, output, images, about, calibration=calibration, opset=flags.opset)
    print(f"stitch {cfg_id}, {stitch}, is in {output}; compared on {report.images} {source}:")
    for name, difference in report.differences.items():
        print(f"  largest difference {difference.largest:.2g} of {name} up to {difference.of:.3g}")
    if report.same_top1 is not None:
        print(f"  same top-1 class on {report.same_top1} of {report.images}")
    for name, size, latency in (
        ("SN-Net (all weights)", report.snnet_bytes, report.snnet_latency),
        (Path(output).name, report.file_bytes, report.file_latency),
    ):
        print(f"  {name:20}  {size / 2**20:8.2f} MiB  {latency.ms:8.2f} ms an image on this CPU{latency.doubt}")
    if report.reader:
        print(f"  {report.reader}")


def _best(flags: argparse.Namespace, budget: Budget, trained: Trained) -> int:
    """The `cfg_id` of the best stitch of `--ledger`, which must have been measured with these weights."""
    from stitchkit.measure.ledger import read_rows
    from stitchkit.measure.metric import compared, metric_of
    from stitchkit.ship.budgeted import complete, lacks_latencies
    from stitchkit.ship.pick import confident_by_image, pick, refusal, superlative, verdict
    from stitchkit.ship.trained_snnet import check_origin

    check_origin(flags.ledger, trained, otherwise="export a stitch by --cfg-id")
    rows = read_rows(flags.ledger)
    by_latency = budget.max_latency_ms is not None
    if by_latency and lacks_latencies(rows):
        print(f"measuring the latencies of {counted(len(rows), 'stitch')} here: the ledger has none that are reliable")
    if note := complete(rows, trained.model, latency=by_latency):
        print(note)
    metric = metric_of(rows, flags.metric)
    confident = confident_by_image(rows, flags.ledger, budget, metric) if flags.confident else None
    choice = pick(rows, budget, metric=metric, allow_unreliable=flags.allow_unreliable, confident=confident)
    if choice.best is None:
        raise InputError(refusal(rows, budget, choice))
    if confident is not None:
        print(verdict(rows, budget, choice))
    elif not budget.limits:
        number = counted(len(compared(rows, metric)), "stitch")
        print(f"no budget was given; exporting the {superlative(metric)} of {number}")
    return int(choice.best["cfg_id"])


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


def _predict(flags: argparse.Namespace) -> None:
    from stitchkit.settings.recipe import flag_of

    options = {field.name: getattr(flags, field.name) for field in fields(PredictSettings)}
    settings = parse(PredictSettings, options, name=flag_of)
    if (flags.exported is None) == (flags.cfg_id is None):
        raise InputError("give either --cfg-id N with an SN-Net (--stitch-config and --resume), or --exported FILE")
    output = new_file(flags.output)
    if output.suffix.lower() not in (".csv", ""):  # before anything is loaded
        raise InputError(f"'{output}' must be a CSV file; give a name that ends with .csv, or a folder for maps")
    from stitchkit.data.folders import image_files
    from stitchkit.distributed import choose_device
    from stitchkit.ship.predict import predict
    from stitchkit.ship.predict_maps import predict_maps
    from stitchkit.ship.predictors import Predictor

    (paths, notes), device = image_files(flags.folder), choose_device(flags.device)
    predictor = _predictor(flags)
    if isinstance(predictor, Predictor):
        if not output.suffix:
            raise InputError(f"'{output}' must be a CSV file; give a name that ends with .csv")
        unreadable = predict(predictor, flags.folder, paths, output, device=device, **asdict(settings))
    else:
        if output.suffix:
            raise InputError(f"the network gives a map of each image; give -o a folder for them in place of '{output}'")
        if settings.top != PredictSettings.top:
            raise InputError("--top does not apply to networks that predict maps; omit it")
        loading = {"batch_size": settings.batch_size, "workers": settings.workers}
        unreadable = predict_maps(predictor, flags.folder, paths, output, device=device, **loading)
    print(f"{output} has predictions for {len(paths) - unreadable} of {counted(len(paths), 'image')}{notes}")


def _predictor(flags: argparse.Namespace) -> Predictor | MapPredictor:
    from stitchkit.ship.description import no_classes
    from stitchkit.ship.predictors import MapPredictor, Predictor, open_predictor
    from stitchkit.ship.trained_snnet import calibrate

    if flags.exported is not None:
        return open_predictor(flags.exported)
    trained = _trained(flags, cfg_id=flags.cfg_id)
    if not trained.model.num_classes:
        raise no_classes("the SN-Net")
    calibrate(trained, flags.cfg_id)
    net = trained.model.extract(flags.cfg_id)
    if trained.config.dense is not None:
        return MapPredictor(net, trained.data_config, trained.recipe.dense)
    return Predictor(net, trained.data_config, trained.classes)


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


def _report(flags: argparse.Namespace) -> None:
    from stitchkit.measure.figure import check_plot
    from stitchkit.measure.ledger import COSTS, nouns_of
    from stitchkit.measure.overlay import read_overlay
    from stitchkit.measure.pareto import plot
    from stitchkit.ship.report import overlay_verdicts, read_ledgers, write_report

    if flags.plot:
        check_plot(flags.plot)
    options = {"allow_unreliable": flags.allow_unreliable, "metric": flags.metric}
    contents = read_ledgers(flags.ledgers, flags.stitch_config, **options)
    metric = contents[0]["metric"]
    every = [row for content in contents for row in content["rows"]]
    costs = [cost for cost in COSTS.values() if any(cost in row for row in every)]
    overlay = read_overlay(flags.overlay, costs, metric) if flags.overlay else None
    write_report(flags.output, contents, title=flags.title, overlay=overlay)
    print(f"{flags.output} shows {counted(len(every), nouns_of(every)[0])}; open it in a browser")
    if overlay:
        print(f"{next(iter(overlay_verdicts(contents, overlay).values()))} {overlay.remark}")
    if flags.plot:
        rows = {content["name"]: content["rows"] for content in contents}
        plot(rows, flags.plot, title=flags.title, overlay=overlay, metric=metric)
        print(f"the plot is {flags.plot}")


def _add_serve_flags(parser: argparse.ArgumentParser) -> None:
    _add_trained(parser, data_for="supplies class names if the checkpoint has none")
    parser.add_argument("--ledger", required=True, metavar="FILE", help="ledger that --eval wrote for this SN-Net")
    parser.add_argument("--port", type=int, metavar="N", help="port; by default the first free one from 7860")
    add_shared(parser, "--device")


def _serve(flags: argparse.Namespace) -> None:
    from stitchkit.distributed import choose_device
    from stitchkit.ship.serve import Demonstration, check_page, serve
    from stitchkit.ship.trained_snnet import check_origin

    check_page(flags.port)
    device = choose_device(flags.device)
    trained = _trained(flags)
    check_origin(flags.ledger, trained, otherwise="give the --ledger of this checkpoint")
    trained.model.to(device)
    title = trained.recipe.folder.name
    serve(Demonstration(trained, flags.ledger), title=title, port=flags.port)


pick = Command(_pick, "name the best stitch of a ledger within a budget", _add_pick_flags)
export = Command(_export, "write one stitch to a file, checked against its SN-Net", _add_export_flags)
predict = Command(_predict, "predict the classes of images in a folder, or a map of each", _add_predict_flags)
report = Command(_report, "write ledgers as one page: plot, table, training curves", _add_report_flags)
serve = Command(_serve, "try an SN-Net in the browser: an image, a budget, a prediction", _add_serve_flags)

"""Every reader of the house, each with good files for it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save

import stitchkit
import stitchnet
from stitchkit.assembly.config.job import JobConfig
from stitchkit.assembly.config.job_settings import check_job
from stitchkit.assembly.parts.network import check_network
from stitchkit.assembly.sweep.config import load_sweep
from stitchkit.assembly.sweep.report import collect
from stitchkit.data.folders import open_images
from stitchkit.data.prepare import COLLECTIONS, read_collection
from stitchkit.data.timm_readers import _check_card
from stitchkit.display import count
from stitchkit.measure.evaluate import PartialSums, Score
from stitchkit.measure.ledger import Ledger, read_rows, strict_json
from stitchkit.measure.ledger_origin import read_origin
from stitchkit.measure.pareto import pareto_front
from stitchkit.measure.per_class import write_per_class
from stitchkit.measure.profile import Cost
from stitchkit.networks.weights import read_checkpoint
from stitchkit.parser import Parser
from stitchkit.routes import Stitch, StitchSpace
from stitchkit.settings.combinations import check
from stitchkit.settings.files import read_settings_file
from stitchkit.settings.flags import add_flags, gather
from stitchkit.settings.recipe import Recipe
from stitchkit.ship.pick import Budget, pick
from stitchkit.ship.report import _training, read_ledgers
from stitchkit.ship.stitch_files import open_exported
from stitchkit.ship.trained_snnet import Trained, describe
from stitchkit.training.summary import cut_summaries, read_summary
from stitchnet import settings as composing
from stitchnet.compose import networks_of
from stitchnet.journal import Journal
from stitchnet.output_map import OutputMap
from stitchnet.search import Ranking
from stitchnet.task import JudgedNetwork
from tests.fuzz.inputs import Dump, Seed, in_lines, in_yaml
from tests.jobs import JOBS, job_config
from tests.support import ROOT, SWEEP, pico_config, pico_snnet


class Reader(NamedTuple):
    """A reader of one kind of file.

    Args:
        file: The place that it reads.
        seeds: Good content.
        read: Reads the file.
        wrap: The bytes of the file around the fuzzed content.
    """

    file: Path
    seeds: Sequence[Seed]
    read: Callable[[Path], object]
    wrap: Callable[[bytes], bytes] = bytes


_JSON: Sequence[Dump] = (json.dumps,)
_SETTINGS: Sequence[Dump] = (in_yaml, json.dumps)  # JSON is YAML


def _shipped(*patterns: str) -> list[Seed]:
    """Configurations of the project, as data."""
    files = [path for pattern in patterns for path in sorted(ROOT.glob(f"configs/{pattern}"))]
    return [Seed(read_settings_file(file), _SETTINGS) for file in files]


def _stitch_config(folder: Path) -> Reader:
    return Reader(folder / "fuzzed.yml", _shipped("*.json"), stitchkit.StitchConfig.load)


def _stitch_config_json(folder: Path) -> Reader:
    seeds = [Seed(seed.content, _JSON) for seed in _shipped("*.json")]
    return Reader(folder / "fuzzed.json", seeds, stitchkit.StitchConfig.load)


def _network(folder: Path) -> Reader:
    def read(path: Path) -> object:
        with torch.device("meta"):
            return stitchkit.create_snnet(path)

    return Reader(folder / "fuzzed.yml", [Seed(pico_config(), _SETTINGS)], read)


def _recipe(folder: Path) -> Reader:
    saved = {key: value for key, value in Recipe().flat().items() if value is not None}
    shipped = read_settings_file(ROOT / "configs/digits_anchor.yaml")
    seeds = [Seed({**some, "model": "resnet18", "data_dir": "x"}, _SETTINGS) for some in (shipped, saved)]
    return Reader(folder / "fuzzed.yml", seeds, lambda path: check(gather({"config": str(path)})[0]))


def _job(folder: Path) -> Reader:
    def read(path: Path) -> object:
        check_job(path)
        return JobConfig.load(path).network

    return Reader(folder / "fuzzed.yml", _shipped("assembly/*.yml"), read)


def _job_network(folder: Path) -> Reader:
    def read(path: Path) -> object:
        return check_network(JobConfig.load(path).network, num_classes=4, input_size=(3, 32, 32))

    jobs: list[dict[str, Any]] = [{**job_config("x"), "pretrained": False}]
    for name in ("own blocks", "block replaced", "CNN to Swin, by a block"):
        if name in JOBS:
            jobs.append({"assembly": JOBS[name], "pretrained": False, "train_config": jobs[0]["train_config"]})
    return Reader(folder / "fuzzed.yml", [Seed(job, _SETTINGS) for job in jobs], read)


def _sweep(folder: Path) -> Reader:
    train = {"dataset": "x", "data_preprocessing": {"image_size": 16}, "epochs": 2, "batch_size": 8, "seed": 3}
    content = {**SWEEP, "train_config": train, "slurm": {}}
    return Reader(folder / "fuzzed.yml", [Seed(content, _SETTINGS)], lambda path: load_sweep(path).jobs)


def _collection(folder: Path) -> Reader:
    seeds = [Seed(read_settings_file(path), _SETTINGS) for path in COLLECTIONS.values()]
    return Reader(folder / "fuzzed.yml", seeds, lambda path: read_collection(str(path)))


def _rows() -> list[dict[str, Any]]:
    about = {
        "latency_ms": 2.0, "images_per_s": 500.0, "latency_reliable": True, "latency_spread_percent": 1.0,
        "latency_batch_size": 1, "latency_device": "cpu", "latency_threads": 2, "latency_precision": "float32",
    }  # fmt: skip
    return [
        {"cfg_id": 0, "stitch": "ti[0:3]", "flops": 10, "params": 5, "acc1": 50.0, "acc5": 80.0, "loss": 1.0, **about},
        {"cfg_id": 3, "stitch": "ti[0:1] > s[1:3]", "flops": 20, "params": 7, "acc1": 60.0, "acc5": 90.0, "loss": 0.5},
    ]


def _published_rows() -> list[Seed]:
    text = (ROOT / "results/digits_vit/stitches_res.txt").read_text()
    return [Seed([json.loads(line) for line in text.splitlines()[:4]], (in_lines,)), Seed(_rows(), (in_lines,))]


def _ledger(folder: Path) -> Reader:
    space = StitchSpace(tuple(map(Stitch.parse, ["ti[0:3]", "s[0:3]", "b[0:3]", "ti[0:1] > s[1:3]"])), {}, 3)

    def read(path: Path) -> object:
        rows = read_rows(path)
        pick(rows, Budget(max_flops=15))
        return pareto_front(rows), Ledger(path, space, lambda cfg_id: Cost(10 + 10 * (cfg_id > 2), 5, 1)).missing

    return Reader(folder / "fuzzed.txt", [Seed(_rows(), (in_lines,))], read)


def _report(folder: Path) -> Reader:
    return Reader(folder / "fuzzed.txt", _published_rows(), lambda path: strict_json(read_ledgers([path])))


def _report_settings(folder: Path) -> Reader:
    (folder / "stitches_res.txt").write_text(in_lines(_rows()))
    seed = Seed(Recipe().flat(), _SETTINGS)
    return Reader(folder / "args.yaml", [seed], lambda _: strict_json(read_ledgers([folder / "stitches_res.txt"])))


_SUMMARY = b"epoch,train_loss,eval_ti_acc1,lr\n0,2.0,10.0,0.1\n1,1.5,20.0,0.1\n"
_LOSSES = b"epoch,cfg_id,stitch,loss,steps\n0,0,ti[0:3],1.0,3\n1,3,ti[0:1] > s[1:3],0.5,1\n"


def _summary(folder: Path) -> Reader:
    def read(path: Path) -> object:
        found = read_summary(folder), strict_json(_training(folder))
        cut_summaries(folder, 1)
        return found

    return Reader(folder / "summary.csv", [Seed(_SUMMARY)], read)


def _losses(folder: Path) -> Reader:
    def read(path: Path) -> object:
        found = strict_json(_training(folder))
        cut_summaries(folder, 1)
        return found

    return Reader(folder / "losses.csv", [Seed(_LOSSES)], read)


def _per_class(folder: Path) -> Reader:
    def read(path: Path) -> None:
        score = Score(50.0, 50.0, 1.0, 2, (1, 0), (1, 1))
        write_per_class(folder, ["a", "b"], {"1": score}, keep=["0"])

    return Reader(folder / "per_class.csv", [Seed(b"class,images,0\na,1,50.0\nb,1,50.0\n")], read)


def _partial_sums(folder: Path) -> Reader:
    about = Seed({"of": {"a": 1}, "batches": 3}, _JSON)

    def wrap(text: bytes) -> bytes:
        return save({"sums": torch.zeros(2, 4)}, metadata={"about": text.decode(errors="replace")})

    return Reader(
        folder / "fuzzed.part0", [about], lambda path: PartialSums(path, {"a": 1}).restore(torch.zeros(2, 4)), wrap
    )


def _origin(folder: Path) -> Reader:
    seed = Seed({"weights_sha256": "0", "dataset": "", "img_size": 16}, _SETTINGS)
    return Reader(folder / "fuzzed.yaml", [seed], lambda path: read_origin(path.with_suffix(".txt"), advice="move it"))


def _output_map(folder: Path) -> Reader:
    content = {"cat": ["tabby", "Persian cat", "n02123597", 285], "dog": "151-250"}
    return Reader(folder / "fuzzed.yml", [Seed(content, _SETTINGS)], lambda path: OutputMap.read(path, "max"))


def _output_table(folder: Path) -> Reader:
    seed = Seed(b"class,output\ncat,tabby\ncat,285\ndog,151-250\n")
    return Reader(folder / "fuzzed.csv", [seed], lambda path: OutputMap.read(path, "max"))


def _composing(folder: Path) -> Reader:
    def read(path: Path) -> object:
        return networks_of(composing.ComposeSettings(data="x", nets=str(path)))

    return Reader(folder / "fuzzed.json", [Seed(seed.content, _JSON) for seed in _shipped("compose/*.json")], read)


def _composed(folder: Path) -> Reader:
    from tests.composing import convnet

    torch.manual_seed(0)
    data = torch.randn(8, 3, 32, 32)
    _, net = next(iter(stitchnet.generate(nets={"a": convnet(4), "b": convnet(6)}, data=data, threshold=0.0)))
    net.save(folder)
    content = json.loads((folder / "net.json").read_text())
    nets = {"a": convnet(4), "b": convnet(6)}
    return Reader(folder / "net.json", [Seed(content, _JSON)], lambda _: stitchnet.load(folder, nets))


def _journal(folder: Path) -> Reader:
    figures = {"stitch": "a", "flops": 1, "params": 1, "score": 1.0, "acc1": 50.0}
    ranking = {"output": "x", "scores": {"a": 1.0}, "skipped": {}}
    lines = [[["settings"], {"--top": 3}], [["row", "a"], figures], [["ranking", "a[0:1]"], ranking]]

    def read(path: Path) -> object:
        journal = Journal(path)
        journal.agree_on_settings({"--top": 4}, growing="--top")
        return journal.find(JudgedNetwork, "row", "a"), journal.find(Ranking, "ranking", "a[0:1]")

    return Reader(folder / "compose.jsonl", [Seed(lines, (in_lines,))], read)


def _class_map(folder: Path) -> Reader:
    from PIL import Image

    for name in ("a", "b"):
        (folder / f"images/{name}").mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(folder / f"images/{name}/0.png")
    return Reader(
        folder / "fuzzed.txt",
        [Seed(b"a\nb\n")],
        lambda path: open_images(folder / "images", class_map=str(path)),
    )


def _card(folder: Path) -> Reader:
    card = {"configs": [{"config_name": "a", "data_files": [{"split": "train", "path": "x.parquet"}]}]}
    (folder / "card").mkdir()
    return Reader(
        folder / "card/README.md",
        [Seed(card, _SETTINGS)],
        lambda path: _check_card(path.parent),
        lambda text: b"---\n" + text + b"\n---\n",
    )


def _trained() -> Trained:
    model = pico_snnet()
    return Trained(model, stitchkit.StitchConfig.parse(pico_config()), Recipe(), ("a", "b", "c", "d"))


def _export(folder: Path) -> Reader:
    subject = _trained()
    net = subject.model.extract(1)

    def wrap(text: bytes) -> bytes:
        weights = {name: value.contiguous() for name, value in net.state_dict().items()}
        return save(weights, metadata={"format": "pt", "stitchkit": text.decode(errors="replace")})

    about = Seed(describe(subject, 1), _JSON)
    return Reader(folder / "fuzzed.safetensors", [about], stitchkit.load_stitch, wrap)


def _export_bytes(folder: Path) -> Reader:
    subject = _trained()
    net, about = subject.model.extract(1), describe(subject, 1)
    weights = {name: value.contiguous() for name, value in net.state_dict().items()}
    whole = save(weights, metadata={"format": "pt", "stitchkit": json.dumps(about)})
    size = int.from_bytes(whole[:8], "little")
    head = Seed(json.loads(whole[8 : 8 + size]), _JSON)

    def wrap(text: bytes) -> bytes:
        return len(text).to_bytes(8, "little") + text + whole[8 + size :]

    def read(path: Path) -> object:
        read_checkpoint(path)
        return open_exported(path)

    return Reader(folder / "fuzzed.safetensors", [head], read, wrap)


def _onnx(folder: Path) -> Reader:
    import onnx

    subject = _trained()
    about = describe(subject, 1)
    network = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["images"], ["logits"])],
        "net",
        [onnx.helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, ["batch", 3, 16, 16])],
        [onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", 3, 16, 16])],
    )
    opsets = [onnx.helper.make_opsetid("", 18)]

    def wrap(text: bytes) -> bytes:
        model = onnx.helper.make_model(network, opset_imports=opsets, ir_version=9)
        model.metadata_props.add(key="stitchkit", value=text.decode(errors="replace"))
        return bytes(model.SerializeToString())

    def read(path: Path) -> object:
        from stitchkit.ship.predict import Predictor

        return Predictor.open(str(path))

    return Reader(folder / "fuzzed.onnx", [Seed(about, _JSON)], read, wrap)


def _checkpoint(folder: Path) -> Reader:
    path = folder / "good.pth"
    torch.save({"state_dict": {"a": torch.ones(3)}, "classes": ["a"], "epoch": 3}, path)
    return Reader(folder / "fuzzed.pth", [Seed(path.read_bytes())], read_checkpoint)


def _legacy_checkpoint(folder: Path) -> Reader:
    path = folder / "good.pth"
    content = {"state_dict": {"a": torch.ones(3)}, "classes": ["a"], "epoch": 3}
    torch.save(content, path, _use_new_zipfile_serialization=False)
    return Reader(folder / "fuzzed.pth", [Seed(path.read_bytes())], read_checkpoint)


def _hub(folder: Path) -> Reader:
    model = stitchkit.HubSNNet(pico_config(), classes=["a", "b", "c", "d"])
    model.save_pretrained(folder)
    content = json.loads((folder / "config.json").read_text())
    return Reader(folder / "config.json", [Seed(content, _JSON)], lambda _: stitchkit.HubSNNet.from_pretrained(folder))


def _metadata(folder: Path) -> Reader:
    about = {
        "arch": "a", "adapter": "linear", "first_deleted_block": 1, "last_deleted_block": 1, "num_downsamples": 0,
        "num_trainable_params": 1,
    }  # fmt: skip
    (folder / "job").mkdir()
    (folder / "job/result-3.csv").write_text("Epoch,Overall/digits/Test Accuracy\n0,0.5\n")
    return Reader(folder / "job/metadata.yml", [Seed(about, _SETTINGS)], lambda _: collect(folder))


def _results(folder: Path) -> Reader:
    reader = _metadata(folder)
    reader.file.write_text(in_yaml(reader.seeds[0].content))
    return Reader(folder / "job/result-3.csv", [Seed((folder / "job/result-3.csv").read_bytes())], reader.read)


def _lines(path: Path) -> list[str]:
    """Arguments as the system hands them over: without NUL, and what is not text as lone surrogates."""
    return path.read_bytes().replace(b"\0", b"").decode(errors="surrogateescape").split("\n")


def _flags(folder: Path) -> Reader:
    parser = Parser()
    add_flags(parser)
    seeds = [
        b"x\n--model\nresnet18\n--model-kwargs\nimg_size=32\ndepth=[1,2]\n--opt\nadamw\n--lr\n1e-3\n-b\n8",
        b"x\n--model\nresnet18\n--input-size\n3\n32\n32\n--mean\n0.5\n--crop-pct\n0.9\n--seed\n3",
        b"x\n--model\nvit_tiny_patch16_224\n--epochs\n3\n--sched\ncosine\n--opt-kwargs\neps=1e-3\n--decay-epochs\n1\n--seed\n3\n--crop-pct\n0.9",
    ]
    return Reader(
        folder / "arguments", [*map(Seed, seeds)], lambda path: check(gather(vars(parser.parse_args(_lines(path))))[0])
    )


def _budget(folder: Path) -> Reader:
    rows = _rows()

    def read(path: Path) -> object:
        flops, params = (_lines(path) * 2)[:2]
        return pick(rows, Budget(max_flops=count(flops), max_params=count(params)))

    return Reader(folder / "arguments", [Seed(b"5G\n1.3e9"), Seed(b"300M\n12k")], read)


def _stitches(folder: Path) -> Reader:
    space = pico_snnet().space

    def read(path: Path) -> object:
        text = "\n".join(_lines(path))
        return space.select(text) if "[" not in text else (Stitch.parse(text), space.find(text))

    return Reader(folder / "arguments", [Seed(b"3,5,10-12"), Seed(b"ti[0:1] > s[1:3]")], read)


def _composing_flags(folder: Path) -> Reader:
    from stitchkit.settings.schema import parse

    parser = Parser()
    composing.add_flags(parser, composing.ComposeSettings)

    def read(path: Path) -> object:
        return parse(composing.ComposeSettings, vars(parser.parse_args(_lines(path))), name=composing.flag_of)

    return Reader(folder / "arguments", [Seed(b"--data\nx\n--max-macs\n3G\n-k\n2\n--threshold\n0.3\n--top\n3")], read)


READERS: dict[str, Callable[[Path], Reader]] = {
    "stitch configuration": _stitch_config,
    "stitch configuration, JSON": _stitch_config_json,
    "network of a stitch configuration": _network,
    "recipe": _recipe,
    "job": _job,
    "network of a job": _job_network,
    "sweep": _sweep,
    "collection": _collection,
    "ledger": _ledger,
    "report": _report,
    "settings beside a ledger": _report_settings,
    "origin of a ledger": _origin,
    "summary.csv": _summary,
    "losses.csv": _losses,
    "per_class.csv": _per_class,
    "partial sums": _partial_sums,
    "output map": _output_map,
    "output map, CSV": _output_table,
    "networks to compose": _composing,
    "composed network": _composed,
    "journal": _journal,
    "class map": _class_map,
    "card of a data set": _card,
    "description of an export": _export,
    "header of an export": _export_bytes,
    "description of an ONNX file": _onnx,
    "checkpoint": _checkpoint,
    "legacy checkpoint": _legacy_checkpoint,
    "folder of the hub": _hub,
    "metadata of a job": _metadata,
    "results of a job": _results,
    "flags of train": _flags,
    "flags of compose": _composing_flags,
    "budget": _budget,
    "choice of stitches": _stitches,
}
"""Makers of readers by name; each gets an empty folder."""
